"""Scores of answers by the recipe's reward, called as verl's PPO calls it."""

from __future__ import annotations

import concurrent.futures
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote.node.common.job_io import JobError, Settings
from llm_bridge.remote.node.rewards import function, trial_calls

THREADS = 8


def metric_name(reward: Optional[Settings]) -> str:
    """Return the name of the metric: that of the reward, or verl's own."""
    if not reward:
        return "verl_reward"
    names = [term["name"] for term in reward.get("terms", [])]
    return "+".join(names) if names else "sandbox"


def load(reward: Optional[Settings], attempt: Path) -> Callable[..., Any]:
    """Return the reward as a function; it writes the user's files into the attempt's directory.

    Raises:
        JobError: It cannot be imported.
    """
    function.write_files(reward or {}, attempt)
    try:
        return trial_calls.load({"reward": reward, "folder": str(attempt)})
    except Exception as error:
        text = trial_calls.describe(error, function.folder(attempt))
        raise JobError(f"ppo.reward cannot be imported: {text}", kind="bad_config") from error


def score(
    compute_score: Callable[..., Any], rows: list[dict[str, Any]], texts: list[list[str]], attempt: Path
) -> list[list[float]]:
    """Return the score of each answer.

    Args:
        compute_score: The reward.
        rows: Rows as of ``rows.read``.
        texts: The answers to each row's prompt.
        attempt: The attempt's directory.

    Raises:
        JobError: The reward failed; the message names the row.
    """

    def one(row: dict[str, Any], text: str) -> float:
        try:
            returned = compute_score(
                data_source=row["data_source"],
                solution_str=text,
                ground_truth=copy.deepcopy(row["ground_truth"]),
                extra_info={**copy.deepcopy(row["extra_info"] or {}), **trial_calls.EXTRA},
            )
            return trial_calls.score_of(function.result_of(returned))
        except trial_calls.BadResult as error:
            said = str(error)
        except Exception as error:
            said = trial_calls.describe(error, function.folder(attempt))
        raise JobError(
            f"ppo.reward failed on row {row['number']} of the test split: {said}. The answer: {text[:200]!r}",
            kind="bad_config",
        )

    # verl calls a function in a thread, too, where signals (and so some time limits) do not work.
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting = [[pool.submit(one, row, text) for text in some] for row, some in zip(rows, texts)]  # noqa: B905
        return [[call.result() for call in calls] for calls in waiting]
