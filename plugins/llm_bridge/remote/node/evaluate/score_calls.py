"""Score answers, one a time, in a process of its own: ``python node.pyz evaluate-score ATTEMPT_DIR``; see scores.py.

The user's code may print, hang or crash. The process ends itself when a call takes too long, also out of C code that
never returns to Python, such as a regular expression's.
"""

from __future__ import annotations

import concurrent.futures
import copy
import faulthandler
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import read_json
from llm_bridge.remote.node.rewards import function, trial_calls

PROGRAM = "evaluate-score"


def call(compute_score: Callable[..., Any], row: dict[str, Any], text: str, folder: Path) -> dict[str, Any]:
    """Return ``{"score"}`` of an answer, or ``{"error"}``.

    Args:
        compute_score: The reward.
        row: A row as of ``rows.read``.
        text: The answer.
        folder: Directory of the user's files, to name their lines.
    """
    try:
        returned = compute_score(
            data_source=row["data_source"],
            solution_str=text,
            ground_truth=copy.deepcopy(row["ground_truth"]),
            extra_info={**copy.deepcopy(row["extra_info"] or {}), **trial_calls.EXTRA},
        )
        return {"score": trial_calls.score_of(function.result_of(returned))}
    except trial_calls.BadResult as error:
        return {"error": str(error)}
    except BaseException as error:
        return {"error": trial_calls.describe(error, folder)}


def main() -> None:
    """Answer each pickled ``(row, text, seconds)`` of standard input with a line of JSON; ``{}`` once it is ready."""
    attempt = Path(sys.argv[1])
    folder = function.folder(attempt)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the user's code prints is for the log

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    faulthandler.dump_traceback_later(trial_calls.LOAD_SECONDS, exit=True, file=2)
    try:
        compute_score = trial_calls.load(
            {"reward": read_json(folder / attempt_dir.REWARD), "folder": str(attempt)}
        )
    except BaseException as error:
        answer({"error": trial_calls.describe(error, folder)})
        os._exit(0)
    faulthandler.cancel_dump_traceback_later()
    answer({})
    # verl calls a function in such a thread, too, where signals (and so some time limits) do not work.
    pool = concurrent.futures.ThreadPoolExecutor(1)
    while True:
        try:
            row, text, seconds = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # a thread of the user's code would keep this process alive
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
        found = pool.submit(call, compute_score, row, text, folder).result()
        faulthandler.cancel_dump_traceback_later()
        answer(found)
