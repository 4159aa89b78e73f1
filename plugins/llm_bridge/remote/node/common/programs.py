"""Find the other programs of the archive that this program runs from, and run programs within a time limit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# node.pyz itself, or the folder that contains the package where the program was not started from an archive.
ARCHIVE = Path(__file__).parents[4]
# Time for a process to end after SIGKILL. One that is blocked in a driver (state D) never does.
KILL_SECONDS = 5.0


def command(program: str, *arguments: str) -> list[str]:
    """Return the command line of another program of this archive, in this program's Python."""
    return [sys.executable, str(ARCHIVE), program, *arguments]


def python_path(environ: Mapping[str, str]) -> str:
    """Return a ``PYTHONPATH`` with which other processes can import the archive's modules, the archive first."""
    return os.pathsep.join(filter(None, [str(ARCHIVE), environ.get("PYTHONPATH")]))


def run(argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command and return its exit code and output; unlike `subprocess.run`, never wait for one that cannot end.

    Args:
        argv: The command.
        seconds: Time limit.

    Raises:
        FileNotFoundError: There is no such command.
        subprocess.TimeoutExpired: The command has not ended in time.
    """
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a process, and wait for its end for at most KILL_SECONDS."""
    process.kill()  # does nothing after its end
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
