"""The right answer of a row as a response, for the trial of a reward."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from llm_bridge.remote.node.common.job_io import Settings

# Built-in rewards that ignore the ground truth: for them no response is more right than another.
WITHOUT_TRUTH = {"regex", "format", "length_penalty"}
# How built-in rewards read the ground truth in a response.
FORMS = {"gsm8k": "#### {}", "math": "\\boxed{{{}}}", "exact_match": "{}"}
NO_TRUTH: tuple[Any, ...] = (None, "", [], {})
# Usual forms of an answer, for a function whose form is unknown.
GUESSES = ("{}", "#### {}", "\\boxed{{{}}}", "<answer>{}</answer>")


class Reference(NamedTuple):
    """Right responses to one row.

    Attributes:
        texts: Responses of which at least one should score above wrong ones; empty if none can be known.
        certain: False if they are guesses, made from the ground truth for a function whose form of answers is unknown.
    """

    texts: list[str]
    certain: bool = True


def uses_truth(reward: Optional[Settings]) -> bool:
    """Return False if a reward consists of built-in ones only that ignore the ground truth."""
    return not reward or any(term["name"] not in WITHOUT_TRUTH for term in reward["terms"])


def of(row: dict[str, Any], reward: Optional[Settings]) -> Reference:
    """Return the right responses to a row.

    Args:
        row: ``messages``, ``ground_truth`` and ``extra_info``.
        reward: The settings' ``reward``; None if verl chooses the reward.
    """
    truth = row["ground_truth"]
    if not uses_truth(reward) or truth in NO_TRUTH:
        return Reference([])
    terms = [term for term in reward["terms"] if term["name"] not in WITHOUT_TRUTH] if reward else []
    forms = {_form(term) for term in terms}
    if forms == {FORMS["exact_match"]}:
        return Reference([str(truth)])  # a solution with its steps is not an exact match
    if response := _response(row):
        return Reference([response])
    if len(forms) == 1 and None not in forms:
        return Reference([str(form).format(truth) for form in forms])
    return Reference([guess.format(truth) for guess in GUESSES], certain=False)


def _form(term: Settings) -> Optional[str]:
    """Return how a reward reads an answer; None for a user's function and for a regular expression of the recipe."""
    return None if term.get("options", {}).get("answer") else FORMS.get(term["name"])


def _response(row: dict[str, Any]) -> str:
    """Return the response that the data have: the last message of the assistant, or the answer of GSM8K's shape."""
    for message in reversed(row.get("messages") or []):
        if message.get("role") == "assistant" and isinstance(message.get("content"), str):
            return str(message["content"])
    answer = (row.get("extra_info") or {}).get("answer")
    return answer if isinstance(answer, str) else ""
