"""Make rows of other shapes into the rows that verl reads: ``messages`` for SFT; ``prompt`` and its fellows for RL."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from string import Formatter
from typing import Any, NamedTuple, Optional

from llm_bridge.remote.node.data import gsm8k

Row = dict[str, Any]
Message = dict[str, str]

ROLES = ("system", "user", "assistant", "tool")
# Names of roles in ShareGPT's conversations.
SHAREGPT_ROLES = {
    **{role: role for role in ROLES},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"},
    **{"observation": "tool", "function_response": "tool"},
}


class Shape(NamedTuple):
    """Shape of a source's rows.

    Attributes:
        columns: Columns that a file must have; None where that depends on the row.
        make: Returns a row as verl reads it; raises ValueError with the reason why it cannot be used.
    """

    columns: Optional[list[str]]
    make: Callable[[Row], Row]


def shape(specification: dict[str, Any], name: str) -> Shape:
    """Return the shape that the recipe names.

    Args:
        specification: ``Data.specification`` of ``config/data.py``.
        name: verl's name of a source's rows where the recipe sets none.
    """
    kind, columns = specification["format"], specification["columns"]
    source = specification["data_source"] or (gsm8k.DATA_SOURCE if kind == "gsm8k" else name)
    system = specification["system"]
    if kind == "gsm8k":
        return Shape(["question", "answer"], lambda row: {**_gsm8k(row), "data_source": source})
    if kind == "verl":
        return Shape(None, _verl)
    if kind == "chat":
        wanted, truth = columns["messages"], columns["truth"]
        named = [column for column in (wanted, truth) if column]
        return Shape(named, lambda row: _chat(row, wanted, truth, system, source))
    template = specification["template"]
    fields = _fields(template) if template else [columns["prompt"]]
    named = list(dict.fromkeys([*fields, *filter(None, (columns["response"], columns["truth"]))]))
    return Shape(named, lambda row: _columns(row, columns, template, fields, system, source))


def _fields(template: str) -> list[str]:
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None))


def _gsm8k(row: Row) -> Row:
    question = gsm8k.text_of(_encoded(row.get("question")), "question")
    answer = gsm8k.text_of(_encoded(row.get("answer")), "answer", ": write '#### NUMBER'")
    made = gsm8k.row(question, answer, "", 0)
    del made["extra_info"]["split"], made["extra_info"]["index"]
    return made


def _encoded(value: Any) -> Any:
    # A lone surrogate of a JSON escape has no UTF-8, in which verl's files are written.
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def text(row: Row, column: str) -> str:
    """Return the text of a cell.

    Raises:
        ValueError: There is no such cell, or it has no text.
    """
    if column not in row:
        raise ValueError(f"has no column {column}; it has {', '.join(row)}")
    value = row[column]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        value = str(value)
    return gsm8k.text_of(_encoded(value), column)


def _filled(row: Row, column: str) -> str:
    """Return a cell's text for a template; an empty cell is an empty text, as in Alpaca's ``input``."""
    value = row.get(column, ...)
    return "" if value is None or (isinstance(value, str) and not value.strip()) else text(row, column)


def _truth(row: Row, column: Optional[str]) -> str:
    """Return the reference answer; a list or an object becomes JSON."""
    if not column:
        return ""
    value = row.get(column)
    if isinstance(value, (list, dict, float, bool)):
        return json.dumps(value)
    return text(row, column)


def _columns(
    row: Row, columns: Row, template: Optional[str], fields: Sequence[str], system: Optional[str], source: str
) -> Row:
    if template:
        values = {field: _filled(row, field) for field in fields}
        if not any(values.values()):
            raise ValueError(f"{' and '.join(fields)} {'is' if len(fields) == 1 else 'are'} empty")
        prompt = [{"role": "user", "content": template.format_map(values)}]
    elif isinstance(row.get(columns["prompt"]), list):
        prompt = messages_of(row[columns["prompt"]], columns["prompt"], needs_answer=False)
    else:
        prompt = [{"role": "user", "content": text(row, columns["prompt"])}]
    response = columns["response"]
    answer = text(row, response) if response else None
    return _made(_with_system(prompt, system), answer, _truth(row, columns["truth"]), source)


def _chat(row: Row, wanted: Optional[str], truth: Optional[str], system: Optional[str], source: str) -> Row:
    column = wanted or next(
        (name for name in ("messages", "conversations") if row.get(name) is not None), None
    )
    if column is None:
        raise ValueError(
            f"has no column messages or conversations; it has {', '.join(row)}: see format columns"
        )
    messages = _with_system(messages_of(row[column], column), system)
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    made = _made(messages[:last], messages[last]["content"], _truth(row, truth), source)
    return {**made, "messages": messages}


def _made(prompt: list[Message], answer: Optional[str], truth: str, source: str) -> Row:
    made: Row = (
        {"messages": [*prompt, {"role": "assistant", "content": answer}]} if answer is not None else {}
    )
    made["prompt"] = prompt
    made["data_source"] = source
    made["ability"] = ""
    made["reward_model"] = {"style": "rule", "ground_truth": truth}
    made["extra_info"] = {}
    return made


def _with_system(messages: list[Message], system: Optional[str]) -> list[Message]:
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def messages_of(value: Any, column: str, *, needs_answer: bool = True) -> list[Message]:
    """Return a conversation as a list of ``{"role", "content"}``.

    Args:
        value: The cell: a list with ``role`` and ``content``, or ``from`` and ``value`` as ShareGPT has them.
        column: Name of its column.
        needs_answer: Refuse a conversation without a message of the assistant.

    Raises:
        ValueError: It is no conversation that a model can be trained on; the message names the place in it.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a CSV file
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{column} is not JSON: {error}") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column} is no list of messages but {value!r:.60}")
    messages = [_message(entry, f"{column}[{number}]") for number, entry in enumerate(value)]
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise ValueError(
            f"{column}: the role system stands at {roles.index('system', 1)}, and only 0 may have it"
        )
    if "user" not in roles:
        raise ValueError(f"{column} has no message of the role user: its roles are {', '.join(roles)}")
    if needs_answer and "assistant" not in roles:
        raise ValueError(
            f"{column} has no message of the role assistant, from which a model learns: its roles are "
            f"{', '.join(roles)}. For prompts without answers (RL) set format: columns and columns.prompt: {column}"
        )
    if needs_answer and roles.index("assistant") < roles.index("user"):
        raise ValueError(f"{column}: the assistant speaks before the user: remove that message")
    return messages


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no message but {entry!r:.60}")
    if entry.get("tool_calls") or entry.get("function_call"):
        raise ValueError(
            f"{where} calls a tool, which would be lost: only its text is trained on. Remove the row"
        )
    if entry.get("role") is None and entry.get("from") is not None:
        role, content, key = entry["from"], entry.get("value"), "value"
    else:
        role, content, key = entry.get("role"), entry.get("content"), "content"
    if not isinstance(role, str) or role not in SHAREGPT_ROLES:
        raise ValueError(f"{where} has the role {role!r}: use one of {', '.join(ROLES)} (or human and gpt)")
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        kinds = {str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in parts}
        if kinds - {"text"}:
            raise ValueError(f"{where} has {', '.join(sorted(kinds - {'text'}))}: this recipe trains on text")
        if bad := [part for part in parts if not isinstance(part.get("text"), str)]:
            raise ValueError(f"{where} has a part without text: {bad[0]!r:.60}")
        content = "".join(part["text"] for part in parts)
    return {"role": SHAREGPT_ROLES[role], "content": gsm8k.text_of(_encoded(content), f"{where}.{key}")}


def _verl(row: Row) -> Row:
    if row.get("messages") is None and row.get("prompt") is None:
        raise ValueError(f"has neither messages (SFT) nor prompt (RL); it has {', '.join(row)}")
    made = dict(row)
    if row.get("messages") is not None:
        made["messages"] = messages_of(row["messages"], "messages")
    if row.get("prompt") is not None:
        made["prompt"] = messages_of(row["prompt"], "prompt", needs_answer=False)
        if not isinstance(row.get("data_source"), str):
            raise ValueError("data_source is no text: verl selects the reward by it")
        if not isinstance(row.get("extra_info"), (dict, type(None))):
            raise ValueError(f"extra_info is no object but {row['extra_info']!r:.60}")
        reward = row.get("reward_model")
        if not isinstance(reward, dict) or reward.get("ground_truth") is None:
            raise ValueError("reward_model.ground_truth is missing: verl's reward compares answers with it")
    return made
