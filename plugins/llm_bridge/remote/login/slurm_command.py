"""Run Slurm commands on the login node within the site's rate limit for them (``rpc_budget`` of the cluster file).

Takes a CommandRequest and returns a CommandAnswer (``remote/messages.py``).

The rate limit is a token bucket in a file that all processes of all Airflow hosts share: it holds for the whole team. A
call with a reserve (polling) leaves that number of tokens to submissions and cancels.
"""

import fcntl
import json
import os
import subprocess
import time
from typing import Any, Dict, Optional, Sequence

from llm_bridge.remote.messages import CommandAnswer, CommandRequest, RateBudget, decode, encode

# Maximum wait for the rate limit: a submission or a cancel waits instead of failing at once.
MAX_WAIT_SECONDS = 90


class RateLimitExceeded(Exception):
    """The rate limit allows no call now.

    Args:
        seconds: Time until it allows the next one.
    """

    def __init__(self, seconds: float) -> None:
        Exception.__init__(
            self, "the site's rate limit for Slurm commands (rpc_budget) allows none for %.0f s" % seconds
        )
        self.seconds = seconds


def take(budget: RateBudget, reserve: int = 0) -> float:
    """Take one token of the rate limit.

    Args:
        budget: The rate limit.
        reserve: Number of tokens to leave to other callers.

    Returns:
        0, or the seconds until a token is available; then none was taken.
    """
    os.makedirs(os.path.dirname(budget.path), mode=0o700, exist_ok=True)
    with open(budget.path, "a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        try:
            held = json.load(stream)
        except ValueError:
            held = {"tokens": budget.burst, "at": time.time()}
        rate = budget.per_minute / 60.0
        now = time.time()
        tokens = min(budget.burst, held["tokens"] + max(0.0, now - held["at"]) * rate)
        lacking = 1 + min(reserve, budget.burst - 1) - tokens
        if lacking > 0:
            return max(0.1, float(lacking / rate))
        stream.truncate(0)
        json.dump({"tokens": tokens - 1, "at": now}, stream)
        return 0


def run(
    argv: Sequence[str],
    budget: Optional[RateBudget],
    stdin: str = "",
    reserve: int = 0,
    pass_fds: Sequence[int] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run a Slurm command within the rate limit; a command that does not exist ends with exit code 127.

    Args:
        argv: The command.
        budget: The rate limit; None without one.
        stdin: Standard input of the command.
        reserve: Number of calls to leave to other callers.
        pass_fds: File descriptors that stay open in the command.

    Raises:
        RateLimitExceeded: The rate limit allows no call: at once with a reserve, without one if it would not within
            MAX_WAIT_SECONDS.
    """
    deadline = time.time() + MAX_WAIT_SECONDS
    while budget:
        try:
            seconds = take(budget, reserve)
        except OSError:  # the workspace cannot be written: no job can be submitted, and the caller finds out
            break
        if not seconds:
            break
        if reserve or time.time() + seconds > deadline:
            raise RateLimitExceeded(seconds)
        time.sleep(seconds)
    pipe = subprocess.PIPE
    try:
        return subprocess.run(
            list(argv),
            input=stdin,
            stdout=pipe,
            stderr=pipe,
            # Not the login node's locale: scripts are UTF-8, and the reason of a drained node may be in any encoding.
            encoding="utf-8",
            errors="replace",
            pass_fds=tuple(pass_fds),
        )
    except FileNotFoundError:
        text = "%s: command not found in the PATH of the login node: %s" % (argv[0], os.environ.get("PATH"))
        return subprocess.CompletedProcess(list(argv), 127, "", text)


def main(request: Dict[str, Any]) -> Any:
    """Run the command of the request."""
    asked = decode(CommandRequest, request)
    try:
        done = run(asked.argv, asked.budget, asked.stdin, asked.reserve)
    except RateLimitExceeded as error:
        return encode(CommandAnswer(wait_seconds=error.seconds))
    return encode(CommandAnswer(done.returncode, done.stdout, done.stderr))
