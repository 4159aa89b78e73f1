"""Decision to publish a model, from its evaluation and the recipe's ``publish``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from llm_bridge.config.publish import Publish
from llm_bridge.remote.node.hub import published

Final = Literal["sft", "rl"]
NAMES = {"base": "base model", "sft": "SFT model", "rl": "RL model"}


class Decision(NamedTuple):
    """Decision of the gate, with its reason as a sentence."""

    publish: bool
    reason: str


def decide(publish: Publish, final: Final, evaluation: dict[str, Any] | None) -> Decision:
    """Return the decision to publish a model.

    Args:
        publish: The recipe's conditions, all of which must hold. An approval is a task of its own.
        final: The model to publish.
        evaluation: Result of the stage ``evaluate``; None without one. For ``better_than: published`` its key
            ``published`` has the score of the model that is on the Hub (``remote/node/hub/published.py``).
    """
    if not publish.needs_evaluation:
        return Decision(True, "publish has no condition on the score")
    if not evaluation:
        return Decision(False, _refusal(["publish compares scores, and the stage evaluate has no result"]))
    reasons: list[str] = []
    refusals: list[str] = []
    for holds, text in _conditions(publish, final, evaluation):
        (reasons if holds else refusals).append(text)
    return Decision(False, _refusal(refusals)) if refusals else Decision(True, "; ".join(reasons))


def _refusal(reasons: list[str]) -> str:
    return f"not published because {'; and '.join(reasons)}"


def _conditions(publish: Publish, final: Final, evaluation: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield each condition: True if it holds, and what was compared."""
    own = evaluation["models"].get(final)
    if not own:
        yield False, f"the {NAMES[final]} was not evaluated"
        return
    score = own["score"]
    if publish.min_score is not None:
        holds = score >= publish.min_score
        compared = "at least" if holds else "below"
        yield (
            holds,
            f"the score {score:.4g} of the {NAMES[final]} is {compared} min_score {publish.min_score:g}",
        )
    if publish.better_than == "published":
        yield published.compare(NAMES[final], own, evaluation.get("published"))
    elif other := publish.better_than:
        found = evaluation["differences"].get(f"{final}-{other}")
        if not found:
            yield False, f"the {NAMES[final]} was not compared with the {NAMES[other]}"
            return
        low, high = found["interval"]
        certainly = "certainly" if low > 0 else "not certainly"
        yield (
            low > 0,
            f"the {NAMES[final]} is {certainly} better than the {NAMES[other]}: the difference of their scores is "
            f"{found['mean']:+.4g} (95 % interval {low:+.4g} to {high:+.4g})",
        )
