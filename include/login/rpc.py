"""Slurm commands on the login node, within the site's ration of them (``rpc_budget`` of the cluster file).

Request:  {"argv": [...], "stdin": text, "budget": budget or null, "reserve": calls to leave to others}
Answer:   {"code", "stdout", "stderr"}  or, where the ration is used up,  {"wait": seconds}

A budget is {"path": file, "burst": calls at once, "per_minute": calls}. All processes of all Airflow hosts share the
file, so it is a token bucket for the whole team; a call with a reserve (polling) leaves so many tokens to submissions
and cancels.
"""

import fcntl
import json
import os
import subprocess
import time

# A submission or a cancel rather waits than fails.
PATIENCE = 90


class RationUsedUp(Exception):
    """No call is left; ``seconds`` until the next one."""

    def __init__(self, seconds):
        Exception.__init__(
            self, "the site's ration of Slurm commands (rpc_budget) is used up for %.0f s" % seconds
        )
        self.seconds = seconds


def take(budget, reserve=0):
    """Take one token; returns 0, or the seconds until there is one."""
    os.makedirs(os.path.dirname(budget["path"]), mode=0o700, exist_ok=True)
    with open(budget["path"], "a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        try:
            held = json.load(stream)
        except ValueError:
            held = {"tokens": budget["burst"], "at": time.time()}
        rate = budget["per_minute"] / 60.0
        now = time.time()
        tokens = min(budget["burst"], held["tokens"] + max(0.0, now - held["at"]) * rate)
        lacking = 1 + min(reserve, budget["burst"] - 1) - tokens
        if lacking > 0:
            return max(0.1, lacking / rate)
        stream.truncate(0)
        json.dump({"tokens": tokens - 1, "at": now}, stream)
        return 0


def run(argv, budget, stdin="", reserve=0, **options):
    """Run a Slurm command; raises RationUsedUp at once with a reserve, and after PATIENCE seconds without one."""
    deadline = time.time() + PATIENCE
    while budget:
        seconds = take(budget, reserve)
        if not seconds:
            break
        if reserve or time.time() + seconds > deadline:
            raise RationUsedUp(seconds)
        time.sleep(seconds)
    pipe = subprocess.PIPE
    return subprocess.run(argv, input=stdin, stdout=pipe, stderr=pipe, universal_newlines=True, **options)


def main(request):
    """One command."""
    try:
        done = run(request["argv"], request["budget"], request["stdin"], request["reserve"])
    except RationUsedUp as error:
        return {"wait": error.seconds}
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
