"""Convert question-and-answer data into the shape that verl trains on.

For SFT a ``messages`` column; for PPO the columns of verl's own ``examples/data_preprocess/gsm8k.py``, whose reward
compares the last ``#### NUMBER`` of an answer with ``ground_truth`` (``verl/utils/reward_score/gsm8k.py``).
"""

from __future__ import annotations

import re
from typing import Any

# verl chooses its reward function by this.
DATA_SOURCE = "openai/gsm8k"
INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
# A number, with thousands separators or without; the rest of the line may be a unit, but no other number or fraction.
_NUMBER = re.compile(r"[$€£]?([-+]?)[$€£]?(\d+|\d{1,3}(?:,\d{3})+)?(\.\d+)?(?![\d,/])\.?([^\d/]*)")
# verl's reward looks for an answer's number with this pattern, in this number of characters at the end.
_REWARD = re.compile(r"#### (-?[0-9.,]+)")
_REWARD_CHARACTERS = 300


def final_number(answer: str) -> tuple[str, str]:
    """Return the number after the last ``####`` of an answer, and the answer in a form that verl's reward understands.

    The reward compares texts: to it ``42.`` and ``42`` are different, and ``3/4`` is 3.

    Args:
        answer: Text of the answer, such as ``1000 + 234 = 1,234 #### 1,234``.

    Returns:
        The number without thousands separators; the answer, unchanged where the reward reads this number from it.

    Raises:
        ValueError: There is no number, or one that the reward cannot compare.
    """
    before, mark, after = answer.rpartition("####")
    line, *rest = after.split("\n", 1)
    found = _NUMBER.fullmatch(line.strip().replace("\u2212", "-"))
    if not mark or not line.strip():
        raise ValueError("the answer has no '#### NUMBER'")
    if not found or not (found[2] or found[3]):
        raise ValueError(
            f"the answer ends in '####{line}', which is not one number: write an integer or a decimal number, such as "
            "'#### 1,234' or '#### 0.75'"
        )
    sign, whole, decimals, _ = found.groups(default="")
    number = ("-" if sign == "-" else "") + whole.replace(",", "") + decimals
    if _read_by_reward(answer) != number:
        answer = "\n".join([f"{before}#### {number}", *rest])
    if _read_by_reward(answer) != number:
        raise ValueError(
            f"'#### {number}' is not in the answer's last {_REWARD_CHARACTERS} characters, which verl's reward reads"
        )
    return number, answer


def _read_by_reward(answer: str) -> str | None:
    """Return the number that verl's reward reads from an answer (``verl/utils/reward_score/gsm8k.py``)."""
    found = _REWARD.findall(answer[-_REWARD_CHARACTERS:])
    return found[-1].replace(",", "") if found else None


def text_of(value: Any, column: str, hint: str = "") -> str:
    """Return a cell's text.

    Args:
        value: The cell: bytes in UTF-8, None, or a value of another type.
        column: Name of its column.
        hint: End of the error about a value that is not text.

    Raises:
        ValueError: The cell is empty or has no text.
    """
    if value is None:
        raise ValueError(f"{column} is null")
    if not isinstance(value, bytes):
        raise ValueError(f"{column} is not text but {value!r:.80} ({type(value).__name__}){hint}")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{column} is not UTF-8: byte {value[error.start]:#04x} at {error.start}") from None
    if not text.strip():
        raise ValueError(f"{column} is empty")
    return text


def row(question: str, answer: str, split: str, index: int) -> dict[str, Any]:
    """Return one row as verl reads it.

    Args:
        question: Text of the question.
        answer: Text of the answer, with the result as ``#### NUMBER``.
        split: ``train`` or ``test``.
        index: Number of the row in its split, from 0.

    Raises:
        ValueError: As for :func:`final_number`.
    """
    truth, answer = final_number(answer)
    prompt = {"role": "user", "content": f"{question} {INSTRUCTION}"}
    return {
        "data_source": DATA_SOURCE,
        "prompt": [prompt],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": split, "index": index, "question": question, "answer": answer},
        "messages": [prompt, {"role": "assistant", "content": answer}],
    }
