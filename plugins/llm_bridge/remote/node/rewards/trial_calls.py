"""Call a reward as verl does, and record each call: ``python node.pyz try-reward FILE``, started by trial.py.

It is a process of its own: the user's code may print, exit, hang or crash. FILE has ``reward``, ``folder`` (where the
user's files are), ``rows``, ``records`` (the file to write) and ``budget_seconds``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import faulthandler
import functools
import inspect
import json
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote.node.common.job_io import Settings
from llm_bridge.remote.node.rewards import function

CASES = ("the reference answer", "another row's answer", "empty text", "a text of 100,000 characters")
REFERENCE, OTHER, EMPTY, LONG = CASES
# Numbers and LaTeX, as in a real response; its last number is no row's answer.
_SENTENCE = "Let me think: 12 + 3.5 = 15.5, so $x = \\frac{1}{2}$ and (a[0]) is 7.\n"
LONG_TEXT = (_SENTENCE * 2000)[-99_980:] + "So it is 987654.321\n"
# verl passes these in extra_info (verl/experimental/reward_loop/reward_manager/naive.py).
EXTRA = {"num_turns": 2, "rollout_reward_scores": {}}
# A call that takes longer does not end at all.
CALL_SECONDS = 30.0
LOAD_SECONDS = 180.0
SLOW_SECONDS = 1.0
REPETITIONS = 2
STDERR = 2


def responses(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the responses that are tried with a row, each with its case."""
    for text in row["reference"]:
        yield REFERENCE, text
    if row["other"] is not None:
        yield OTHER, row["other"]
    yield EMPTY, ""
    yield LONG, LONG_TEXT


class BadResult(Exception):
    """A reward returned something that verl cannot use."""


def score_of(result: Any) -> float:
    """Return the score that a reward has returned: a number, or a dict with the key ``score``.

    Raises:
        BadResult: It is something else.
    """
    if isinstance(result, dict):
        if "score" not in result:
            raise BadResult(
                f"returned a dict without the key 'score'; its keys: {', '.join(map(str, result))}"
            )
        for key, value in result.items():
            # verl averages them in the validation, but leaves out texts and None.
            if key != "score" and value is not None and not isinstance(value, str):
                _number(value, f" as {key}")
        result = result["score"]
    return _number(result)


def _number(value: Any, key: str = "") -> float:
    # An object's address differs in each call, and messages that are the same are counted.
    shown = re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:80]
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise BadResult(f"returned {shown} ({type(value).__name__}){key}, which is not a number") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadResult(f"returned {shown}{key}, which is not a finite number")
    return number


def describe(error: BaseException, folder: Path) -> str:
    """Return an exception with the line of the user's file that it comes from, or else the last line of code."""
    while isinstance(error, RuntimeError) and error.__cause__:  # verl's loader wraps it
        error = error.__cause__
    text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == folder]
    if isinstance(error, SyntaxError) or not frames:
        return text
    frame = (own or frames)[-1]
    place = f"include/rewards/{Path(frame.filename).name}" if own else frame.filename
    return f"{text} ({place}, line {frame.lineno})"


def load(settings: Settings) -> Callable[..., Any]:
    """Return the function to try: the recipe's, or the one that verl chooses by ``data_source``."""
    reward = settings["reward"]
    if reward and reward.get("terms"):
        return function.load(reward, Path(settings["folder"]))
    from verl.utils.reward_score import default_compute_score

    if not reward:
        return default_compute_score  # type: ignore[no-any-return]
    return functools.partial(
        default_compute_score,
        sandbox_fusion_url=reward["sandbox_url"],
        concurrent_semaphore=threading.Semaphore(reward.get("sandbox_max_concurrent", 64)),
        memory_limit_mb=reward.get("sandbox_memory_mb", 1024),
    )


class Recorder:
    """Calls a function, and writes a line before and after each call."""

    def __init__(self, compute_score: Callable[..., Any], path: Path, folder: Path) -> None:
        self._function = compute_score
        self._folder = folder
        self._file = path.open("w", encoding="utf-8")
        # verl calls a function in such a thread, where signals (and so many time limits) do not work.
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._keys: Optional[list[str]] = None

    def call(self, row: dict[str, Any], case: str, text: str) -> None:
        """Try one response."""
        record: dict[str, Any] = {"row": row["number"], "case": case}
        write(self._file, record)
        # It ends this process also out of C code that never returns to Python, such as a regular expression's.
        faulthandler.dump_traceback_later(CALL_SECONDS, exit=True, file=STDERR)
        try:
            started = time.monotonic()
            result = self._result(row, text)
            record["seconds"] = time.monotonic() - started
            for _ in range(REPETITIONS):  # the first call may load something, or the node may be busy
                if record["seconds"] > SLOW_SECONDS:
                    started = time.monotonic()
                    result = self._result(row, text)
                    record["seconds"] = min(record["seconds"], time.monotonic() - started)
            record["score"] = score_of(result)
            self._check_keys(result)
        except BadResult as error:
            record["error"] = str(error)
        except BaseException as error:
            record["error"] = describe(error, self._folder)
        finally:
            faulthandler.cancel_dump_traceback_later()
        write(self._file, record | {"done": True})

    def _result(self, row: dict[str, Any], text: str) -> Any:
        arguments = {
            "data_source": row["data_source"],
            "solution_str": text,
            "ground_truth": copy.deepcopy(row["ground_truth"]),
            "extra_info": {**copy.deepcopy(row["extra_info"] or {}), **EXTRA},
        }
        plain = self._function.func if isinstance(self._function, functools.partial) else self._function
        if inspect.iscoroutinefunction(plain):
            return asyncio.run(self._function(**arguments))
        return self._pool.submit(self._function, **arguments).result()

    def _check_keys(self, result: Any) -> None:
        keys = sorted(map(str, result)) if isinstance(result, dict) else []
        if self._keys is None:
            self._keys = keys
        if keys != self._keys:
            raise BadResult(
                f"returned the keys {', '.join(keys) or '(a number)'} and in an earlier call "
                f"{', '.join(self._keys) or '(a number)'}: verl needs the same ones in each call"
            )


def write(file: Any, record: dict[str, Any]) -> None:
    """Append a line to the records, at once."""
    file.write(json.dumps(record, ensure_ascii=True) + "\n")
    file.flush()


def main() -> None:
    """Run the program."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder, records = function.folder(Path(settings["folder"])), Path(settings["records"])
    faulthandler.dump_traceback_later(LOAD_SECONDS, exit=True, file=STDERR)
    try:
        compute_score = load(settings)
    except BaseException as error:
        module = error.name if isinstance(error, ModuleNotFoundError) else None
        with records.open("w", encoding="utf-8") as file:
            write(file, {"load": describe(error, folder), "module": module})
        os._exit(0)
    faulthandler.cancel_dump_traceback_later()
    recorder = Recorder(compute_score, records, folder)
    end = time.monotonic() + settings["budget_seconds"]
    for row in settings["rows"]:
        for case, text in responses(row):
            recorder.call(row, case, text)
        if time.monotonic() > end:
            break
    sys.stdout.flush()
    os._exit(0)  # a thread of the user's code would keep this process alive
