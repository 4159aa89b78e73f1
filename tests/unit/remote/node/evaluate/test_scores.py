"""Scores by the recipe's reward, as PPO calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.evaluate import scores

GSM8K = {"terms": [{"name": "gsm8k", "options": {"method": "strict", "format_score": 0.0}}]}
OWN = """
async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if solution_str == "crash":
        raise KeyError("no such thing")
    if solution_str == "text":
        return "good"
    assert extra_info["num_turns"] == 2
    return {"score": len(solution_str), "acc": 1.0}
"""


def rows(count: int) -> list[dict[str, Any]]:
    one = {"data_source": "s", "ground_truth": "12", "extra_info": {"index": 1}}
    return [{"number": number, **one} for number in range(count)]


def own(attempt: Path) -> Any:
    return scores.load({"terms": [{"name": "own"}], "files": {"own": OWN}}, attempt)


def test_each_answer_to_each_prompt_has_a_score(tmp_path: Path) -> None:
    compute_score = scores.load(GSM8K, tmp_path)
    texts = [["#### 12", "#### 13"], ["no number", "#### 12"]]
    assert scores.score(compute_score, rows(2), texts, tmp_path) == [[1.0, 0.0], [0.0, 1.0]]


def test_a_users_coroutine_function_and_its_dict_are_scored_as_in_training(tmp_path: Path) -> None:
    assert scores.score(own(tmp_path), rows(1), [["abc", ""]], tmp_path) == [[3.0, 0.0]]


def test_a_reward_that_fails_names_the_row_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match=r"row 1 of the test split: KeyError: 'no such thing' \(include/rewards/own.py"
    ):
        scores.score(own(tmp_path), rows(2), [["a"], ["crash"]], tmp_path)
    with pytest.raises(JobError, match=r"returned .good. .str., which is not a number"):
        scores.score(own(tmp_path), rows(1), [["text"]], tmp_path)


def test_a_reward_that_cannot_be_imported_is_an_error_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"ppo\.reward cannot be imported: ModuleNotFoundError"):
        scores.load({"terms": [{"name": "own"}], "files": {"own": "import no_such_module"}}, tmp_path)


def test_the_metric_is_named_after_the_reward() -> None:
    assert scores.metric_name(None) == "verl_reward"
    assert scores.metric_name(GSM8K) == "gsm8k"
    assert scores.metric_name({"terms": [{"name": "gsm8k"}, {"name": "format"}]}) == "gsm8k+format"
    assert scores.metric_name({"sandbox_url": "http://h"}) == "sandbox"
