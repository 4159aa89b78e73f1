"""Run programs of the machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess

from testing.local_cluster.errors import LocalClusterError


def checked(argv: list[str], input: str | None = None) -> str:
    """Run a short command of the machine and return its output.

    Raises:
        LocalClusterError: It could not be run, or failed; the message has the command and its output.
    """
    try:
        done = subprocess.run(argv, input=input, text=True, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalClusterError(f"cannot run `{shlex.join(argv)}`: {error}") from error
    if done.returncode:
        output = (done.stderr or done.stdout).strip()
        raise LocalClusterError(f"`{shlex.join(argv)}` failed with exit code {done.returncode}: {output}")
    return done.stdout


def run_group(argv: list[str], input: str | None, timeout: float | None) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process group, and kill the whole group after the timeout.

    `subprocess.run` would kill nsenter only, and leave the program that it started in the host.

    Raises:
        subprocess.TimeoutExpired: It ran longer than `timeout` seconds.
    """
    pipe = subprocess.PIPE
    stdin = subprocess.DEVNULL if input is None else pipe
    with subprocess.Popen(
        argv, stdin=stdin, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)
