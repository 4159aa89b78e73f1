"""Tiny twins of the shipped recipes, from their own data, algorithm and reward to a published model.

`make recipes-report` trains all of them; these two have most of the parts.
"""

from __future__ import annotations

from typing import Any

from testing.stack import DAG
from testing.twins import BY_NAME, scores


def train(stack: Any, recipe: str) -> dict[str, Any]:
    """Train a recipe's twin; returns the run's summary."""
    twin = BY_NAME[recipe]
    twin.write_data(stack.site)
    state = stack.run(DAG, recipe, 1800, recipe=twin.name)
    failed = {task: s for task, s in stack.states(DAG, recipe).items() if s not in ("success", "skipped")}
    assert state == "success", failed | {task: stack.log(DAG, recipe, task)[-3000:] for task in failed}
    summary: dict[str, Any] = stack.api.xcom(DAG, recipe, "summary", "summary")
    return summary


def test_conversations_in_a_file_are_fine_tuned_on_and_published(stack: Any) -> None:
    summary = train(stack, "chat_sft_llama32_1b")
    assert summary["model"]["repo_id"] == "demo/twin-chat-sft-llama32-1b"
    assert {row["name"] for row in summary["stages"] if row["state"] == "success"} == {
        *("prepare", "sft", "sft merge", "upload")
    }
    _, before, after = scores(stack, DAG, "chat_sft_llama32_1b")
    assert before and after and after < before


def test_a_reward_of_ones_own_rises_by_training(stack: Any) -> None:
    """Greedy answers to the test split score higher than those of the untrained model."""
    summary = train(stack, "own_reward_grpo_llama32_1b")
    assert summary["model"]["repo_id"] == "demo/twin-own-reward-grpo-llama32-1b"
    metric, before, after = scores(stack, DAG, "own_reward_grpo_llama32_1b")
    assert metric and metric.startswith("val-core/"), metric
    assert before is not None and after is not None and after > before + 0.1, (before, after)
