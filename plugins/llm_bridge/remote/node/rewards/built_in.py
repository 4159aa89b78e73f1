"""Built-in rewards as pure functions; their options are in ``config/reward.py``.

They are called by name with verl's arguments, of which they ignore most, and from several threads at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Optional

from llm_bridge.remote.node.rewards import math_verify

# As verl's own reward for GSM8K (verl/utils/reward_score/gsm8k.py): the end of the response and these patterns count.
_GSM8K_CHARACTERS = 300
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[0-9.,]+)")


def gsm8k(
    solution_str: str,
    ground_truth: str,
    method: str = "strict",
    format_score: float = 0.0,
    **_: Any,
) -> float:
    """Return 1 if the last number of the response is the ground truth, as verl's own reward reads it.

    Args:
        solution_str: The response.
        ground_truth: A number as text, such as ``1234``.
        method: ``strict`` takes the last ``#### NUMBER``, ``flexible`` the last number.
        format_score: Score of a wrong number.
    """
    end = solution_str[-_GSM8K_CHARACTERS:]
    found = _STRICT.findall(end) if method == "strict" else _FLEXIBLE.findall(end)
    if not found:
        return 0.0
    answer = found[-1]
    if method == "flexible":
        # verl's own: the last one that is not "."; the first one if all are.
        answer = next((text for text in reversed(found) if text not in ("", ".")), found[0])
        return 1.0 if answer == ground_truth else format_score
    return 1.0 if answer.replace(",", "") == ground_truth else format_score


def math(solution_str: str, ground_truth: str, **_: Any) -> float:
    """Return 1 if math-verify finds the last expression of the response equal to the ground truth."""
    return 1.0 if math_verify.equal(str(ground_truth), solution_str) else 0.0


def exact_match(
    solution_str: str,
    ground_truth: str,
    answer: Optional[str] = None,
    ignore_case: bool = False,
    **_: Any,
) -> float:
    """Return 1 if the answer is the ground truth, apart from white space.

    Args:
        solution_str: The response.
        ground_truth: The right answer.
        answer: Regular expression that finds the answer in the response: its last match, of which the first group if
            it has one. Without it, the answer is the whole response.
        ignore_case: True if upper and lower case are the same.
    """
    found = solution_str
    if answer:
        matches = list(re.finditer(answer, solution_str, re.DOTALL))
        if not matches:
            return 0.0
        found = matches[-1].group(1 if matches[-1].re.groups else 0) or ""
    given, right = " ".join(found.split()), " ".join(str(ground_truth).split())
    if ignore_case:
        given, right = given.casefold(), right.casefold()
    return 1.0 if given == right else 0.0


def regex(solution_str: str, pattern: str, **_: Any) -> float:
    """Return 1 if ``pattern`` is found in the response."""
    return 1.0 if re.search(pattern, solution_str) else 0.0


def format_(solution_str: str, pattern: str, **_: Any) -> float:
    """Return 1 if ``pattern`` matches the whole response; its dot matches line breaks, too."""
    return 1.0 if re.fullmatch(pattern, solution_str, re.DOTALL) else 0.0


def length_penalty(solution_str: str, free: int, full: int, **_: Any) -> float:
    """Return 0 for a response of up to ``free`` characters, -1 from ``full`` characters on, and linear between."""
    excess = (len(solution_str) - free) / (full - free)
    return -min(max(excess, 0.0), 1.0)


REWARDS: dict[str, Callable[..., float]] = {
    "gsm8k": gsm8k,
    "math": math,
    "exact_match": exact_match,
    "regex": regex,
    "format": format_,
    "length_penalty": length_penalty,
}
