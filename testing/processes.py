"""Find and end processes, and measure their memory."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def with_variable(name: str, value: str) -> list[int]:
    """Return the pids of all processes that have `name=value` in their environment, except the caller's.

    Every child inherits the variable, also in another session or process group, and after its parents' end. This finds
    processes that pid files and process groups miss: Airflow gives every task its own process group.
    """
    wanted = f"{name}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        # The process has ended meanwhile, or belongs to another user.
        with contextlib.suppress(OSError):
            if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def end(find: Callable[[], list[int]], patience: float) -> None:
    """End all processes that `find` returns: SIGTERM, and SIGKILL after `patience` seconds.

    Raises:
        RuntimeError: Processes have not ended.
    """
    asked: set[int] = set()
    begin = time.monotonic()
    while pids := find():
        waited = time.monotonic() - begin
        if waited > patience + 10:
            raise RuntimeError(f"processes {pids} have not ended after SIGKILL: inspect them with ps")
        for pid in pids:
            if waited > patience:
                _signal(pid, signal.SIGKILL)
            elif pid not in asked:
                _signal(pid, signal.SIGTERM)
                asked.add(pid)
        time.sleep(0.1)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def memory(pids: Iterable[int]) -> int:
    """Return the bytes that the processes use together; shared memory counts once (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.split("\nPss:", 1)[1].split()[0]) * 1024
    return total


class MemoryWatch(threading.Thread):
    """Peak memory of some processes together, measured periodically.

    Args:
        find: Returns the pids.
        every: Interval in seconds; one measurement of 100 processes costs about 0.1 s of a core.
    """

    def __init__(self, find: Callable[[], Iterable[int]], every: float = 5) -> None:
        super().__init__(daemon=True)
        self.find = find
        self.every = every
        self.peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Measure the memory until :meth:`stop`."""
        while not self._over.wait(self.every):
            self.peak = max(self.peak, memory(self.find()))

    def stop(self) -> int:
        """Stop measuring and return the peak in bytes."""
        self._over.set()
        self.join(timeout=10)
        return self.peak
