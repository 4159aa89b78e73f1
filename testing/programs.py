"""Run programs that must not fail, with a log file each."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from testing import paths


class ProgramError(RuntimeError):
    """A program failed; the message has its purpose, exit code and log."""


def run_program(
    argv: Sequence[str | Path], what: str, logs: Path, env: Mapping[str, str] | None = None
) -> str:
    """Run a program in the repository's folder.

    Args:
        argv: The command.
        what: Purpose of the program, such as "upload model and data"; also the name of its log.
        logs: Folder for the log.
        env: Whole environment of the program; None inherits this process'.

    Returns:
        The program's standard output.

    Raises:
        ProgramError: It failed; the message has the end of its log.
    """
    log = logs / f"{what.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        done = subprocess.run(
            [str(part) for part in argv],
            cwd=paths.ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    if done.returncode:
        end = "\n  ".join(log.read_text(errors="replace").strip().splitlines()[-6:])
        raise ProgramError(f"cannot {what} (exit code {done.returncode}), see {log}:\n  {end}")
    return done.stdout
