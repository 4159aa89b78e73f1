"""Find, end and weigh processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def with_variable(name: str, value: str) -> list[int]:
    """Pids of all processes that have `name=value` in their environment, the caller excepted.

    A variable is handed down to every child, whatever session or group it moves to, and survives its parents.
    So it finds what pid files and process groups miss: Airflow gives every task a process group of its own.
    """
    wanted = f"{name}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        # Processes that ended meanwhile, and those of other users, are none of ours.
        with contextlib.suppress(OSError):
            if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def end(find: Callable[[], list[int]], patience: float) -> None:
    """End all processes that `find` returns: ask them, after `patience` seconds make them.

    Raises:
        RuntimeError: some are still there.
    """
    asked: set[int] = set()
    begin = time.monotonic()
    while pids := find():
        waited = time.monotonic() - begin
        if waited > patience + 10:
            raise RuntimeError(f"processes {pids} do not end, not even by SIGKILL: look at them with ps")
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
    """Bytes that the processes use together; what they share is counted once (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.split("\nPss:", 1)[1].split()[0]) * 1024
    return total


class MemoryWatch(threading.Thread):
    """Remembers the most memory that some processes used together, looking every few seconds.

    Args:
        find: gives the pids to weigh.
        every: seconds between two looks; one look at 100 processes costs about 0.1 s of a core.
    """

    def __init__(self, find: Callable[[], Iterable[int]], every: float = 5) -> None:
        super().__init__(daemon=True)
        self.find = find
        self.every = every
        self.peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self.every):
            self.peak = max(self.peak, memory(self.find()))

    def stop(self) -> int:
        """Stop looking; returns the peak in bytes."""
        self._over.set()
        self.join(timeout=10)
        return self.peak
