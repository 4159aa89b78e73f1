"""Name the task that broke a run, its log file, and the cause."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# It fails because something else did.
CONSEQUENCE = "summary"
LINES = 12
# What Airflow itself writes into every task's log.
AIRFLOWS_OWN = ("task", "py.warnings", "airflow.dag_processing.", "airflow.task.hooks.")

# "[n1] [rank0]: some.module.SomeError: text", the end of a traceback as jobs print it.
EXCEPTION = re.compile(r"\s*(\[[\w-]+\]:? |\([^)]*\) )*(?P<name>[A-Za-z_][\w.]*(Error|Exception)): \S")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LAUNCHERS = ("ChildFailedError", "CalledProcessError", "RayTaskError", "SlurmJobFailed")


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    Attributes:
        task_id: the task that failed first.
        log: its log file; None if it never started.
        cause: the line of the job's output that tells most, if any, and the last error of that log.
    """

    task_id: str
    log: Path | None
    cause: list[str]

    def text(self) -> str:
        """For people."""
        lines = [f"failed: {self.task_id}", f"   log: {self.log or 'none: the task never started'}"]
        return "\n".join([*lines, *(f"        {line}" for line in self.cause)])


def first_failure(tasks: Iterable[dict[str, Any]], logs: Callable[[str], list[Path]]) -> Failure | None:
    """The task that failed first, by the clock; None if none did.

    Args:
        tasks: task instances as the API gives them.
        logs: log files of a task, oldest first.
    """
    failed = [task for task in tasks if task["state"] == "failed"]
    if not failed:
        return None
    failed.sort(key=lambda task: (task["task_id"] == CONSEQUENCE, task["end_date"] or ""))
    task_id = failed[0]["task_id"]
    files = logs(task_id)
    told = telling_line(files)
    for file in reversed(files):
        if cause := error_lines(file):
            known = told is None or any(told in line for line in cause)
            return Failure(task_id, file, cause if known else [str(told), *cause])
    return Failure(task_id, files[-1] if files else None, [told] if told else [])


def error_lines(log: Path) -> list[str]:
    """What the last error in a task's log says; empty if there is none."""
    last: list[str] = []
    for entry in entries(log):
        details = entry.get("error_detail") or []
        if details:
            # The first is what was raised; those after it are what it came from.
            raised = f"{details[0].get('exc_type')}: {details[0].get('exc_value')}"
            last = [line.rstrip() for line in raised.splitlines() if line.strip()]
        elif entry.get("level") in ("error", "critical"):
            last = str(entry.get("event")).splitlines()
    return last if len(last) <= LINES else [*last[: LINES // 2], "...", *last[-LINES // 2 :]]


def telling_line(files: list[Path]) -> str | None:
    """The last exception in the output of a task's last try, launchers' own left out; None if there is none.

    A launcher's report of who failed stands below what failed, and is longer than what people are shown.
    """
    last_try = max((try_number(file) for file in files), default=0)
    found = None
    for file in files:
        if try_number(file) == last_try:
            for entry in entries(file):
                for line in COLOUR.sub("", str(entry.get("event", ""))).splitlines():
                    match = EXCEPTION.match(line)
                    if match and not match["name"].endswith(LAUNCHERS):
                        found = line.strip()
    return found


def try_number(log: Path) -> int:
    """Of a log file `attempt=N.log` or `attempt=N.log.trigger.M.log`."""
    digits = log.name.removeprefix("attempt=").split(".")[0]
    return int(digits) if digits.isdigit() else 0


def last_line(files: list[Path]) -> str:
    """The newest line that a task or its job wrote; empty if there is none."""
    for file in reversed(files):
        for entry in reversed(list(entries(file, tail=20_000))):
            text = str(entry.get("event", "")).strip()
            logger = entry.get("logger")
            if text and logger and not str(logger).startswith(AIRFLOWS_OWN):
                return text.splitlines()[-1].strip()
    return ""


def entries(log: Path, tail: int | None = None) -> Iterable[dict[str, Any]]:
    """The lines of one of Airflow's task logs (JSON, one an event)."""
    with log.open("rb") as file:
        if tail:
            size = file.seek(0, 2)
            file.seek(max(0, size - tail))
        text = file.read().decode(errors="replace")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the half line at the start of a tail
            continue
        if isinstance(entry, dict):
            yield entry
