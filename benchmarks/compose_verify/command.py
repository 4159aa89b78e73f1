"""Run programs, with what they say in log files."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class VerifyError(RuntimeError):
    """The verification cannot go on; the text says what failed, where its log is, and how that ends."""


def output(argv: Sequence[str | Path], timeout: float = 120, input: str | None = None) -> str:
    """What a short command prints.

    Raises:
        VerifyError: it could not be run, took too long or failed.
    """
    text = [str(part) for part in argv]
    try:
        done = subprocess.run(text, input=input, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VerifyError(f"cannot run `{shlex.join(text)}`: {error}") from error
    if done.returncode:
        said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise VerifyError(f"`{shlex.join(text)}` ended with exit code {done.returncode}:\n  {said}")
    return done.stdout


def logged(
    argv: Sequence[str | Path],
    log: Path,
    timeout: float = 3600,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a long command; what it says is added to a log.

    Raises:
        VerifyError: it failed or took too long; the text holds the end of the log.
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
    """Whether a short command can be run and says yes."""
    try:
        return subprocess.run(argv, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
