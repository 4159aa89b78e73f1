"""The decision to publish: each condition, and the sentence that states its reason."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.publish import Publish
from llm_bridge.pipeline.gate import decide


def evaluation(**keys: Any) -> dict[str, Any]:
    """An evaluation in which RL is better than base and not certainly better than SFT."""
    return {
        "models": {
            "base": {"score": 0.2, "interval": [0.15, 0.25]},
            "sft": {"score": 0.45, "interval": [0.4, 0.5]},
            "rl": {"score": 0.5, "interval": [0.45, 0.55]},
        },
        "differences": {
            "rl-base": {"mean": 0.3, "interval": [0.22, 0.38]},
            "rl-sft": {"mean": 0.05, "interval": [-0.01, 0.11]},
            "sft-base": {"mean": 0.25, "interval": [0.2, 0.3]},
        },
        **keys,
    }


def published(score: float | None, exists: bool = True, note: str = "") -> dict[str, Any]:
    return evaluation(published={"exists": exists, "score": score, "note": note})


@pytest.mark.parametrize("made", [None, evaluation()])
def test_without_a_condition_on_the_score_every_model_is_published(made: Any) -> None:
    assert decide(Publish(), "rl", made).publish
    assert decide(Publish(approval=True), "rl", made).publish


@pytest.mark.parametrize(
    "condition", [{"min_score": 0.1}, {"better_than": "base"}, {"better_than": "published"}]
)
def test_a_condition_without_an_evaluation_refuses(condition: Any) -> None:
    decision = decide(Publish(**condition), "rl", None)
    assert not decision.publish
    assert decision.reason.startswith("not published because publish compares scores")


@pytest.mark.parametrize(("min_score", "holds"), [(0.49, True), (0.5, True), (0.51, False)])
def test_min_score_is_the_lowest_score_that_is_published(min_score: float, holds: bool) -> None:
    assert decide(Publish(min_score=min_score), "rl", evaluation()).publish is holds


def test_a_score_of_0_and_a_negative_one_can_be_the_minimum() -> None:
    made = evaluation(models={"rl": {"score": -0.1, "interval": [-0.2, 0.0]}})
    assert decide(Publish(min_score=-0.2), "rl", made).publish
    assert not decide(Publish(min_score=0.0), "rl", made).publish


def test_a_refusal_says_both_numbers() -> None:
    assert decide(Publish(min_score=0.6), "rl", evaluation()).reason == (
        "not published because the score 0.5 of the RL model is below min_score 0.6"
    )


def test_a_difference_counts_by_its_lower_bound() -> None:
    assert decide(Publish(better_than="base"), "rl", evaluation()) == (
        True,
        "the RL model is certainly better than the base model: the difference of their scores is +0.3 (95 % interval "
        "+0.22 to +0.38)",
    )
    assert decide(Publish(better_than="sft"), "rl", evaluation()) == (
        False,
        "not published because the RL model is not certainly better than the SFT model: the difference of their "
        "scores is +0.05 (95 % interval -0.01 to +0.11)",
    )


def test_equal_models_are_not_better() -> None:
    same = {"rl-base": {"mean": 0.0, "interval": [0.0, 0.0]}}
    assert not decide(Publish(better_than="base"), "rl", evaluation(differences=same)).publish


def test_the_model_of_a_run_without_rl_is_that_of_sft() -> None:
    assert decide(Publish(better_than="base"), "sft", evaluation()).publish
    assert not decide(Publish(min_score=0.48), "sft", evaluation()).publish


def test_a_model_that_was_not_evaluated_or_compared_is_not_published() -> None:
    assert decide(Publish(min_score=0.1), "rl", evaluation(models={})).reason == (
        "not published because the RL model was not evaluated"
    )
    assert not decide(Publish(better_than="sft"), "rl", evaluation(differences={})).publish


@pytest.mark.parametrize(("score", "holds"), [(0.44, True), (0.45, False), (0.6, False)])
def test_the_published_score_is_compared_with_the_lower_bound(score: float, holds: bool) -> None:
    decision = decide(Publish(better_than="published"), "rl", published(score))
    assert decision.publish is holds
    assert f"interval 0.45 to 0.55), and that of the published model {score:g}" in decision.reason


def test_the_first_model_of_a_repository_is_better_than_none() -> None:
    decision = decide(Publish(better_than="published"), "rl", published(None, False, "no repository a/b"))
    assert decision == (True, "no model is published yet: no repository a/b")


def test_a_published_model_whose_score_is_unknown_is_kept() -> None:
    decision = decide(Publish(better_than="published"), "rl", published(None, note="other data"))
    assert not decision.publish and decision.reason.endswith("is not known: other data")
    assert not decide(Publish(better_than="published"), "rl", evaluation()).publish


def test_all_conditions_must_hold_and_a_refusal_has_each_one_that_does_not() -> None:
    assert decide(Publish(min_score=0.4, better_than="base"), "rl", evaluation()).publish
    one = decide(Publish(min_score=0.4, better_than="sft"), "rl", evaluation())
    assert not one.publish and "min_score" not in one.reason
    both = decide(Publish(min_score=0.9, better_than="sft"), "rl", evaluation())
    assert "below min_score 0.9; and the RL model is not certainly better" in both.reason
