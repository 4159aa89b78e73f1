"""Scores of answers by the recipe's reward, called as verl's PPO calls it, in processes that end when it hangs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pickle
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.common.job_io import JobError, Settings, log_line
from llm_bridge.remote.node.evaluate.score_calls import PROGRAM
from llm_bridge.remote.node.rewards import function, trial_calls

PROCESSES = 4
# Twice that of the reward's trial, which makes one call at a time.
CALL_SECONDS = 2 * trial_calls.CALL_SECONDS


class Scored(NamedTuple):
    """Scores of a model's answers.

    Attributes:
        points: The scores of the answers to each prompt.
        timeouts: Number of answers that count as 0 because the reward did not end within its time limit.
    """

    points: list[list[float]]
    timeouts: int


def metric_name(reward: Optional[Settings]) -> str:
    """Return the name of the metric: that of the reward, or verl's own."""
    if not reward:
        return "verl_reward"
    names = [term["name"] for term in reward.get("terms", [])]
    return "+".join(names) if names else "sandbox"


class Scorer:
    """Reward in child processes, which are started on demand, and again after one was ended by its time limit.

    Use it as a context manager. It writes the user's files into the attempt's directory.

    Args:
        reward: The recipe's reward; None for verl's own.
        attempt: The attempt's directory.
        seconds: Time limit of one call.

    Raises:
        JobError: The reward cannot be imported.
    """

    def __init__(self, reward: Optional[Settings], attempt: Path, seconds: float = CALL_SECONDS) -> None:
        function.write_files(reward or {}, attempt)
        self._attempt, self._seconds = attempt, seconds
        sandbox = bool(reward and reward.get("sandbox_url"))  # waits for answers of the network
        self._count = 2 * PROCESSES if sandbox else min(PROCESSES, len(os.sched_getaffinity(0)))
        self._idle: queue.SimpleQueue[Optional[subprocess.Popen[bytes]]] = queue.SimpleQueue()
        for _ in range(self._count - 1):
            self._idle.put(None)
        self._idle.put(self._start())

    def __enter__(self) -> Scorer:
        """Return the scorer."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all child processes."""
        while not self._idle.empty():
            if child := self._idle.get():
                _end(child)

    def score(self, rows: list[dict[str, Any]], texts: list[list[str]]) -> Scored:
        """Return the score of each answer.

        Args:
            rows: Rows as of ``rows.read``.
            texts: The answers to each row's prompt.

        Raises:
            JobError: The reward failed; the message names the row.
        """
        with concurrent.futures.ThreadPoolExecutor(self._count) as pool:
            waiting = [
                [pool.submit(self._one, row, text) for text in some]
                for row, some in zip(rows, texts)  # noqa: B905
            ]
            try:
                found = [[call.result() for call in calls] for calls in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        timeouts = sum(point is None for some in found for point in some)
        return Scored([[point or 0.0 for point in some] for some in found], timeouts)

    def _one(self, row: dict[str, Any], text: str) -> Optional[float]:
        """Return the score of one answer; None if the reward did not end within its time limit."""
        child = self._idle.get()
        try:
            child = child or self._start()
            started = time.monotonic()
            answer = _ask(child, (row, text, self._seconds))
            if answer is None:
                code, child = _end(child, programs.KILL_SECONDS), None
                if time.monotonic() - started >= self._seconds:
                    log_line(
                        f"WARNING: ppo.reward did not end within {self._seconds:g} s on row {row['number']} of the "
                        f"test split, which counts as 0. The answer: {text[:200]!r}"
                    )
                    return None
                answer = {"error": f"it ended its process (exit code {code})"}
        finally:
            self._idle.put(child)
        if "error" in answer:
            raise JobError(
                f"ppo.reward failed on row {row['number']} of the test split: {answer['error']}. The answer: "
                f"{text[:200]!r}",
                kind="bad_config",
            )
        return float(answer["score"])

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "llm_bridge.remote.node", PROGRAM, str(self._attempt)],
            env={**os.environ, "PYTHONPATH": programs.python_path(os.environ)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        answer = _ask(child)
        if answer is None or "error" in answer:
            code = _end(child, programs.KILL_SECONDS)
            text = answer["error"] if answer else f"it ended its process (exit code {code})"
            raise JobError(f"ppo.reward cannot be imported: {text}", kind="bad_config")
        return child


def _ask(child: subprocess.Popen[bytes], call: Optional[tuple[Any, ...]] = None) -> Optional[dict[str, Any]]:
    """Send a call to a child process, if any, and return its next answer; None if the process has ended."""
    assert child.stdin and child.stdout
    try:
        if call:
            pickle.dump(call, child.stdin)
            child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        return None
    return dict(json.loads(line)) if line.endswith(b"\n") else None


def _end(child: subprocess.Popen[bytes], seconds: float = 0) -> int:
    """End a child process, and return its exit code.

    Args:
        child: The process.
        seconds: Time for it to end by itself.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    programs.kill(child)
    assert child.stdin and child.stdout
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    child.stdout.close()
    return child.returncode or 0
