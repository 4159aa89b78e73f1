"""Compare mathematical expressions with math-verify, in a process of its own.

math-verify's time limits use SIGALRM, which works in a main thread only, and verl calls rewards in other threads.
Without a limit, one response such as ``$9^{9^{9}}$`` would stop the training for good. So this process sends each
comparison to a child process, which the kernel ends when its time is over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import Any, Optional

from llm_bridge.remote.node.common import programs

PROGRAM = "reward-math"
# A comparison takes milliseconds; those that take longer do not end at all.
SECONDS = 3.0
# The final answer is near the end; math-verify takes a minute for 100,000 characters with many numbers.
CHARACTERS = 3000
# Python's large integers grow until memory is full.
MEMORY_BYTES = 4 * 1024**3


class Comparisons:
    """Child process that compares expressions, one at a time; started on demand, and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Optional[subprocess.Popen[str]] = None

    def equal(self, gold: str, text: str) -> bool:
        """Return True if the last expression of ``text`` equals ``gold``; False also if that takes too long.

        Raises:
            ModuleNotFoundError: math-verify is not installed.
        """
        with self._lock:
            child = self._start()
            try:
                assert child.stdin and child.stdout
                child.stdin.write(json.dumps([gold, text]) + "\n")
                child.stdin.flush()
                answer = child.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:
                self.close()
                return False
            return bool(json.loads(answer))

    def close(self) -> None:
        """End the child process."""
        if self._child:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def start(self) -> None:
        """Start the child process, unless it runs.

        Raises:
            ModuleNotFoundError: math-verify is not installed.
        """
        with self._lock:
            self._start()

    def _start(self) -> subprocess.Popen[str]:
        if self._child:
            return self._child
        if importlib.util.find_spec("math_verify") is None:
            raise ModuleNotFoundError("the reward 'math' needs math-verify", name="math_verify")
        child = subprocess.Popen(
            [sys.executable, "-m", "llm_bridge.remote.node", PROGRAM],
            env={**os.environ, "PYTHONPATH": programs.python_path(os.environ)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        assert child.stdout
        if not child.stdout.readline():
            child.communicate()
            raise ImportError(
                f"math-verify does not start in {sys.executable} (exit code {child.returncode}): run "
                f"'{sys.executable} -c \"import math_verify\"' on a node of the cluster"
            )
        self._child = child
        return child


_comparisons = Comparisons()
start = _comparisons.start


def equal(ground_truth: str, response: str) -> bool:
    """Return True if the last expression of a response equals the ground truth.

    Args:
        ground_truth: An expression, in LaTeX or plain.
        response: Text; an expression in a box comes first.

    Raises:
        ModuleNotFoundError: math-verify is not installed.
    """
    gold = ground_truth if "\\boxed" in ground_truth else f"\\boxed{{{ground_truth}}}"
    return _comparisons.equal(gold, response[-CHARACTERS:])


def compare(gold: str, text: str) -> bool:
    """Compare in this process, without a time limit."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    right = parse(gold, (LatexExtractionConfig(),), parsing_timeout=None)
    given = parse(text, (ExprExtractionConfig(), LatexExtractionConfig()), parsing_timeout=None)
    return bool(right and given and verify(right, given, timeout_seconds=None))


def main() -> None:
    """Answer each line ``[GOLD, TEXT]`` of standard input with a line ``true`` or ``false``."""
    import math_verify  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        gold, text = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # ends this process, also inside of C code
        result: Any = False
        with contextlib.suppress(
            Exception
        ):  # an expression that math-verify cannot handle is no right answer
            result = compare(gold, text)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(result), file=answers, flush=True)
