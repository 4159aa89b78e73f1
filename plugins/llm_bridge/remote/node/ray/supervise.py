"""Run one program, and leave none of its descendants behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphaned descendants become children of this process, not of init
# scancel and time limits send TERM to every process of the job; the guard makes srun forward USR1.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Stopped(Exception):
    """A stop signal has arrived; the text is its name."""


def raise_stopped_on_signals() -> None:
    """Make the first stop signal raise Stopped; later ones are ignored, so that the cleanup is not interrupted."""

    def stop(number: int, _frame: object) -> None:
        ignore_stop_signals()
        raise Stopped(signal.Signals(number).name)

    for each in STOP_SIGNALS:
        signal.signal(each, stop)


def ignore_stop_signals() -> None:
    """Ignore stop signals from now on, so that only SIGKILL can interrupt the cleanup."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that :func:`descendants` finds all of them from now on."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_held(argv: list[str], log: Path) -> tuple[int, Callable[[], None]]:
    """Start a program with its output in a file and its standard input open.

    Args:
        argv: The command line; the program is an absolute path.
        log: Receives standard output and standard error.

    Returns:
        The process id, and a function that ends the standard input.
    """
    held, release = os.pipe()  # neither end is inherited except as standard input
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_DUP2, held, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=files)
    os.close(held)
    return pid, lambda: os.close(release)


def wait_for(pid: int) -> int:
    """Wait until a program ends, reaping orphans meanwhile, and return its exit code, negative for a signal."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def end_children(grace: float) -> None:
    """Send SIGTERM to this process's children, then kill the descendants that are left.

    Args:
        grace: Seconds between SIGTERM and SIGKILL.
    """
    for each in descendants(os.getpid(), depth=1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(100):  # a process may fork while it is being killed: repeat until none is left
        for each in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        if not _reap():
            return
        time.sleep(0.05)


def descendants(pid: int, depth: int | None = None) -> list[int]:
    """Return the process ids of a process's children, their children, and further generations.

    Args:
        pid: The process.
        depth: Number of generations; None means all.
    """
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc(5): "pid (name) state ppid"; the name may hold any character, so split after the last bracket.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    generation = [pid]
    while generation and depth != 0:
        generation = [child for parent in generation for child in children.get(parent, [])]
        found += generation
        depth = None if depth is None else depth - 1
    return found


def _reap() -> bool:
    """Reap ended children; return True if any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
