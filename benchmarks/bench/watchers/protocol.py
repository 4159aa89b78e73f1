"""Shared parts of all watchers: the request on standard input, the jobs' script, the answer on standard output.

Standard library only: a peer may run in an environment of its own, or on the login node.

A watcher prints ``ready``, reads one request, submits the jobs, prints ``submitted``, and prints a line when it notices
a job's end. A job
runs until a time that the file ``go`` of the run's folder decides, so that submission and start are over when the
measurement begins. It writes its own end down as its last act, with the clock that the watcher uses, too.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

GO = "go"
STARTED, ENDED = "started.", "ended."

# Only builtins of bash wait here: hundreds of `sleep` processes would be measured, too.
_SCRIPT = """#!/bin/bash
#SBATCH --mem=100M --ntasks=1 --cpus-per-task=1 --time=60
exec {{pause}}<> <(:)
: > {folder}/started.{number}
while [ ! -e {folder}/go ]; do read -r -t 1 -u $pause; done
read -r go < {folder}/go
while left=$((go + {offset_us} - ${{EPOCHREALTIME/[.,]/}})); [ $left -gt 0 ]; do
    {line}
    printf -v left '%d.%06d' $((left / 1000000)) $((left % 1000000))
    read -r -t "$left" -u $pause
done
echo "${{EPOCHREALTIME/,/.}}" > {folder}/ended.{number}
exit 0
"""


def read_request() -> dict[str, Any]:
    """Return the request: ``folder``, ``offsets`` (a job each, seconds after ``go``), and the peer's own values."""
    say("ready")
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    return request


# A job that writes ten lines a second in place of waiting.
_LINE = """echo "{mark}$EPOCHREALTIME number $((number += 1))"; read -r -t 0.1 -u $pause; continue"""
# Before the time in such a line.
MARK = "written-at="


def script(request: dict[str, Any], number: int) -> str:
    """Return the text of a job's script."""
    offset = int(request["offsets"][number] * 1e6)
    line = _LINE.format(mark=MARK) if request.get("loud") else ""
    return _SCRIPT.format(folder=request["folder"], number=number, offset_us=offset, line=line)


def say(event: str, **values: Any) -> None:
    """Print one event for the measuring process, in one write: threads of peers print, too."""
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def noticed(number: int) -> None:
    """Print that a job's end was noticed now."""
    say("noticed", number=number, time=time.time())


def stay() -> None:
    """Wait until the measuring process has what it needs: it reads this process's CPU time and memory."""
    sys.stdin.read()
