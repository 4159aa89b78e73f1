"""An Airflow whose processes can be killed one by one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from testing.airflow import START_TIMEOUT_SECONDS, LocalAirflow


class FragileAirflow(LocalAirflow):
    """Adds to :class:`LocalAirflow` what breaks it."""

    parts: dict[str, subprocess.Popen[bytes]]

    def start(self, timeout: float = START_TIMEOUT_SECONDS) -> bool:
        """As there; may be called again after :meth:`crash`."""
        started = super().start(timeout)
        if started:
            self.parts = dict(zip(self._components(), self._children, strict=True))
        return started

    def signal(self, part: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one component, and to no child of it."""
        self.parts[part].send_signal(number)

    def kill(self, part: str) -> None:
        """SIGKILL one component and, as a service manager would, what it leaves idle behind; tasks run on."""
        self.signal(part)
        self.parts[part].wait()
        for pid, title in self._titles():
            if "<idle>" in title and parent(pid) == 1:
                kill(pid)

    def freeze(self, part: str) -> Callable[[], None]:
        """Stop a component and its children; return a function that resumes them."""
        pids = [
            self.parts[part].pid,
            *(pid for pid in self.processes() if parent(pid) == self.parts[part].pid),
        ]
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        return lambda: [kill(pid, signal.SIGCONT) for pid in pids] and None

    def revive(self, part: str, kind: str | None = None) -> None:
        """Start a component again, or one more of a ``kind``."""
        arguments = self._components()[kind or part]
        self.parts[part] = child = self._spawn(f"{part}-{time.time():.0f}", arguments)
        self._children.append(child)

    def crash(self) -> None:
        """The machine's power is gone: SIGKILL for everything, tasks included."""
        while pids := self.processes():
            for pid in pids:
                kill(pid)
            for child in self._children:
                child.poll()
            time.sleep(0.05)

    def tasks(self) -> list[int]:
        """Pids of the processes that run a task's code now (task_runner.py names them)."""
        return [
            pid
            for pid, title in self._titles()
            if title.startswith("airflow worker -- ") and "-" in title[18:]
        ]

    def _titles(self) -> Iterator[tuple[int, str]]:
        for pid in self.processes():
            yield pid, title(pid)


def title(pid: int) -> str:
    """Command line of a process, or what it has put there; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def parent(pid: int) -> int:
    """0 if it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
