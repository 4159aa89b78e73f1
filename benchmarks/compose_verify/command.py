"""Run programs, with their output in log files."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class VerifyError(RuntimeError):
    """The verification cannot continue; the message has the failed command, its log, and the end of that."""


def output(argv: Sequence[str | Path], timeout: float = 120, input: str | None = None) -> str:
    """Run a short command and return its output.

    Raises:
        VerifyError: It could not be run, exceeded the timeout or failed.
    """
    text = [str(part) for part in argv]
    try:
        done = subprocess.run(text, input=input, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VerifyError(f"cannot run `{shlex.join(text)}`: {error}") from error
    if done.returncode:
        end = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise VerifyError(f"`{shlex.join(text)}` ended with exit code {done.returncode}:\n  {end}")
    return done.stdout


def logged(
    argv: Sequence[str | Path],
    log: Path,
    timeout: float = 3600,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a long command and append its output to a log.

    Raises:
        VerifyError: It failed or exceeded the timeout; the message has the end of the log.
    """
    text = [str(part) for part in argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ {shlex.join(text)}\n")
        file.flush()
        try:
            code = subprocess.run(
                text, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=timeout, cwd=cwd, env=env
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VerifyError(f"cannot run `{shlex.join(text)}`: {error}; see {log}") from error
    if code:
        end = "\n  ".join(log.read_text(errors="replace").strip().splitlines()[-10:])
        raise VerifyError(f"`{shlex.join(text)}` ended with exit code {code}, see {log}:\n  {end}")


def succeeds(*argv: str) -> bool:
    """Return whether a short command exists and its exit code is 0."""
    try:
        return subprocess.run(argv, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
