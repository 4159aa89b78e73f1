"""Rows of other shapes as verl reads them."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.data import Data
from llm_bridge.remote.node.data import gsm8k
from llm_bridge.remote.node.data.shapes import shape

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def make(row: dict[str, Any], **given: Any) -> dict[str, Any]:
    return shape(Data(source="/d.jsonl", **given).specification(), "mine").make(row)


def test_a_row_like_gsm8k_is_as_before_there_were_other_formats() -> None:
    expected = gsm8k.row("q", "2\n#### 2", "train", 0)
    del expected["extra_info"]["split"], expected["extra_info"]["index"]
    made = make({"question": "q", "answer": "2\n#### 2"})
    assert (made, list(made)) == (expected, list(expected))


def test_a_conversation_is_for_sft_and_its_beginning_for_rl() -> None:
    made = make({"messages": [USER, ANSWER, USER, ANSWER]}, format="chat")
    assert made["messages"] == [USER, ANSWER, USER, ANSWER]
    assert made["prompt"] == [USER, ANSWER, USER]
    assert (made["data_source"], made["reward_model"]["ground_truth"]) == ("mine", "")


def test_conversations_of_sharegpt_are_read() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert make({"conversations": turns}, format="chat")["messages"] == [USER, ANSWER]


def test_a_system_text_is_added_where_there_is_none() -> None:
    own = {"role": "system", "content": "Own."}
    given = {"format": "chat", "system": "Be brief."}
    assert make({"messages": [USER, ANSWER]}, **given)["messages"][0] == {
        "role": "system",
        "content": "Be brief.",
    }
    assert make({"messages": [own, USER, ANSWER]}, **given)["messages"][0] == own


def test_columns_and_a_template_make_a_prompt() -> None:
    row = {"q": "1+1", "a": "two", "n": 2}
    made = make(row, format="columns", template="Solve {q}.", columns={"response": "a", "truth": "n"})
    assert made["prompt"] == [{"role": "user", "content": "Solve 1+1."}]
    assert made["messages"] == [*made["prompt"], {"role": "assistant", "content": "two"}]
    assert made["reward_model"] == {"style": "rule", "ground_truth": "2"}
    assert "messages" not in make(row, format="columns", columns={"prompt": "q"}), "for RL only"


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_a_template_takes_an_empty_cell_as_no_text(empty: Any) -> None:
    row = {"instruction": "Add 1 and 2.", "input": empty}
    made = make(row, format="columns", template="{instruction}\n{input}")
    assert made["prompt"] == [{"role": "user", "content": "Add 1 and 2.\n"}]


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (1.5, "1.5")])
def test_a_cell_with_a_number_is_its_text(value: float, text: str) -> None:
    made = make({"q": value}, format="columns", columns={"prompt": "q"})
    assert made["prompt"] == [{"role": "user", "content": text}]


def test_parts_of_text_are_joined() -> None:
    content = ["What is ", {"type": "text", "text": "1+1?"}]
    made = make({"messages": [{**USER, "content": content}, ANSWER]}, format="chat")
    assert made["prompt"] == [{"role": "user", "content": "What is 1+1?"}]


@pytest.mark.parametrize(
    ("row", "given", "problem"),
    [
        ({"q": ""}, {"format": "columns", "columns": {"prompt": "q"}}, "q is empty"),
        ({"q": None}, {"format": "columns", "columns": {"prompt": "q"}}, "q is null"),
        ({"q": "a\ud800"}, {"format": "columns", "columns": {"prompt": "q"}}, "q is not UTF-8"),
        ({"q": b"\xff"}, {"format": "columns", "columns": {"prompt": "q"}}, "q is not UTF-8: byte 0xff at 0"),
        ({"a": "x"}, {"format": "columns", "template": "{q}"}, "has no column q; it has a"),
        (
            {"text": "x"},
            {"format": "chat"},
            "has no column messages or conversations; it has text: see format columns",
        ),
        ({"messages": []}, {"format": "chat"}, "messages is no list of messages"),
        ({"messages": [USER]}, {"format": "chat"}, "no message of the role assistant"),
        ({"messages": [ANSWER, USER]}, {"format": "chat"}, "the assistant speaks before the user"),
        (
            {"messages": [USER, {"role": "bott", "content": "x"}]},
            {"format": "chat"},
            "use one of system, user",
        ),
        (
            {"messages": [USER, {**ANSWER, "content": " "}]},
            {"format": "chat"},
            "messages[1].content is empty",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]},
            {"format": "chat"},
            "trains on text",
        ),
        (
            {"messages": [{**USER, "role": ["user"]}, ANSWER]},
            {"format": "chat"},
            "[0] has the role ['user']: use one",
        ),
        (
            {"messages": [{**USER, "content": [{"type": ["text"], "text": "x"}]}, ANSWER]},
            {"format": "chat"},
            "messages[0] has ['text']: this recipe trains on text",
        ),
        ({"messages": [{**USER, "content": [7]}, ANSWER]}, {"format": "chat"}, "messages[0] has int"),
        (
            {"messages": [{**USER, "content": [{"type": "text", "text": None}]}, ANSWER]},
            {"format": "chat"},
            "messages[0] has a part without text: {'type': 'text', 'text': None}",
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f"}}]}]},
            {"format": "chat"},
            "messages[1] calls a tool, which would be lost",
        ),
        ({"question": "q", "answer": 42}, {}, "answer is not text but 42 (int): write '#### NUMBER'"),
        (
            {"prompt": [USER], "data_source": "x", "reward_model": {"ground_truth": "1"}, "extra_info": "x"},
            {"format": "verl"},
            "extra_info is no object but 'x'",
        ),
        ({"q": True}, {"format": "columns", "columns": {"prompt": "q"}}, "q is not text but True"),
        ({"q": float("nan")}, {"format": "columns", "columns": {"prompt": "q"}}, "q is not text but nan"),
        ({"q": "", "r": None}, {"format": "columns", "template": "{q}{r}"}, "q and r are empty"),
        ({"text": "x"}, {"format": "verl"}, "has neither messages (SFT) nor prompt (RL); it has text"),
        ({"prompt": [USER]}, {"format": "verl"}, "data_source is no text"),
        ({"prompt": [USER], "data_source": "x"}, {"format": "verl"}, "reward_model.ground_truth is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_the_reason(
    row: dict[str, Any], given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError) as raised:
        make(row, **given)
    assert problem in str(raised.value)
