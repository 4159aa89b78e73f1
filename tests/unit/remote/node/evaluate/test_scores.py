"""Scores by the recipe's reward, as PPO calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.evaluate import scores

GSM8K = {"terms": [{"name": "gsm8k", "options": {"method": "strict", "format_score": 0.0}}]}
OWN = """
import os, re, time
print("text of the user's code is no answer")
async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if solution_str == "crash":
        raise KeyError("no such thing")
    if solution_str == "exit":
        os._exit(7)
    if solution_str == "sleep":
        time.sleep(1000)
    if solution_str == "regex":
        re.match("(a+)+b", "a" * 60)
    if solution_str == "text":
        return "good"
    assert extra_info["num_turns"] == 2
    return {"score": len(solution_str), "acc": 1.0}
"""


def rows(count: int) -> list[dict[str, Any]]:
    one = {"data_source": "s", "ground_truth": "12", "extra_info": {"index": 1}}
    return [{"number": number, **one} for number in range(count)]


def own(attempt: Path, **options: float) -> scores.Scorer:
    return scores.Scorer({"terms": [{"name": "own"}], "files": {"own": OWN}}, attempt, **options)


def test_each_answer_to_each_prompt_has_a_score(tmp_path: Path) -> None:
    texts = [["#### 12", "#### 13"], ["no number", "#### 12"]]
    with scores.Scorer(GSM8K, tmp_path) as scorer:
        assert scorer.score(rows(2), texts) == ([[1.0, 0.0], [0.0, 1.0]], 0)


def test_a_users_coroutine_function_and_its_dict_are_scored_as_in_training(tmp_path: Path) -> None:
    with own(tmp_path) as scorer:
        assert scorer.score(rows(1), [["abc", ""]]).points == [[3.0, 0.0]]


def test_a_reward_that_fails_names_the_row_and_the_line(tmp_path: Path) -> None:
    with own(tmp_path) as scorer:
        with pytest.raises(
            JobError, match=r"row 1 of the test split: KeyError: 'no such thing' \(include/rewards/own.py"
        ):
            scorer.score(rows(2), [["a"], ["crash"]])
        with pytest.raises(JobError, match=r"returned .good. .str., which is not a number"):
            scorer.score(rows(1), [["text"]])
        with pytest.raises(
            JobError, match=r"row 0 .*: it ended its process \(exit code 7\). The answer: 'exit'"
        ):
            scorer.score(rows(1), [["exit"]])


def test_an_answer_whose_reward_does_not_end_counts_as_0_and_the_others_are_scored(tmp_path: Path) -> None:
    """A regular expression that backtracks holds Python's lock, so that no thread could end it."""
    with own(tmp_path, seconds=5.0) as scorer:
        texts = [["abc"], ["sleep"], ["regex"], ["ab"]]
        assert scorer.score(rows(4), texts) == ([[3.0], [0.0], [0.0], [2.0]], 2)


def test_a_reward_that_cannot_be_imported_is_an_error_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"ppo\.reward cannot be imported: ModuleNotFoundError"):
        scores.Scorer({"terms": [{"name": "own"}], "files": {"own": "import no_such_module"}}, tmp_path)
    with pytest.raises(
        JobError, match=r"ppo\.reward cannot be imported: it ended its process \(exit code 3\)"
    ):
        scores.Scorer({"terms": [{"name": "own"}], "files": {"own": "import os; os._exit(3)"}}, tmp_path)


def test_the_metric_is_named_after_the_reward() -> None:
    assert scores.metric_name(None) == "verl_reward"
    assert scores.metric_name(GSM8K) == "gsm8k"
    assert scores.metric_name({"terms": [{"name": "gsm8k"}, {"name": "format"}]}) == "gsm8k+format"
    assert scores.metric_name({"sandbox_url": "http://h"}) == "sandbox"
