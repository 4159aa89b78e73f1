"""Name the task that broke a run, its log file, and the cause."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This task fails when another task has failed.
CONSEQUENCE = "summary"
LINES = 12
# Loggers of Airflow itself, which write into every task's log.
AIRFLOWS_OWN = ("task", "py.warnings", "airflow.dag_processing.", "airflow.task.hooks.")

# Airflow's entry for a task that has logged its error itself.
AIRFLOWS_END = "Task exited"

# "[n1] [rank0]: some.module.SomeError: text", the end of a traceback as jobs print it.
EXCEPTION = re.compile(r"\s*(\[[\w-]+\]:? |\([^)]*\) )*(?P<name>[A-Za-z_][\w.]*(Error|Exception)): \S")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LAUNCHERS = ("ChildFailedError", "CalledProcessError", "RayTaskError", "SlurmJobFailed")


@dataclass(frozen=True)
class Failure:
    """Cause of a run's failure.

    Attributes:
        task_id: The task that failed first.
        log: Its log file; None if the task never started.
        cause: The last exception in the job's output, if any, and the last error of that log.
    """

    task_id: str
    log: Path | None
    cause: list[str]

    def text(self) -> str:
        """Return the failure as lines for the terminal."""
        lines = [f"failed: {self.task_id}", f"   log: {self.log or 'none: the task never started'}"]
        return "\n".join([*lines, *(f"        {line}" for line in self.cause)])


def first_failure(tasks: Iterable[dict[str, Any]], logs: Callable[[str], list[Path]]) -> Failure | None:
    """Return the failure of the task that failed first, by end date; None if no task failed.

    Args:
        tasks: Task instances as returned by the API.
        logs: Returns the log files of a task, the oldest first.
    """
    failed = [task for task in tasks if task["state"] == "failed"]
    if not failed:
        return None
    failed.sort(key=lambda task: (task["task_id"] == CONSEQUENCE, task["end_date"] or ""))
    task_id = failed[0]["task_id"]
    files = logs(task_id)
    exception = last_exception(files)
    for file in reversed(files):
        if cause := error_lines(file):
            shown = exception is None or any(exception in line for line in cause)
            return Failure(task_id, file, cause if shown else [str(exception), *cause])
    return Failure(task_id, files[-1] if files else None, [exception] if exception else [])


def error_lines(log: Path) -> list[str]:
    """Return the text of the last error in a task's log, without a traceback; empty if there is none.

    Entries of level error that follow each other are one error: a diagnosis is logged line by line.
    """
    last: list[str] = []
    goes_on = False
    for entry in entries(log):
        details = entry.get("error_detail") or []
        if details:
            # The first is the raised exception; the others are its causes.
            raised = f"{details[0].get('exc_type')}: {details[0].get('exc_value')}"
            last, goes_on = [line.rstrip() for line in raised.splitlines() if line.strip()], False
        elif entry.get("level") not in ("error", "critical"):
            goes_on = False
        elif entry.get("event") != AIRFLOWS_END:
            last = [*(last if goes_on else []), *str(entry.get("event")).splitlines()]
            goes_on = True
    return last if len(last) <= LINES else [*last[: LINES // 2], "...", *last[-LINES // 2 :]]


def last_exception(files: list[Path]) -> str | None:
    """Return the last exception in the output of a task's last try, except launchers' own; None if there is none.

    A launcher prints its report about the failed process below that process' exception, and the report is longer than
    the excerpt of the summary.
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
    """Return N of a log file `attempt=N.log` or `attempt=N.log.trigger.M.log`; 0 for another name."""
    digits = log.name.removeprefix("attempt=").split(".")[0]
    return int(digits) if digits.isdigit() else 0


def last_line(files: list[Path]) -> str:
    """Return the newest line that a task or its job wrote; empty if there is none."""
    for file in reversed(files):
        for entry in reversed(list(entries(file, tail=20_000))):
            text = str(entry.get("event", "")).strip()
            logger = entry.get("logger")
            if text and logger and not str(logger).startswith(AIRFLOWS_OWN):
                return text.splitlines()[-1].strip()
    return ""


def entries(log: Path, tail: int | None = None) -> Iterable[dict[str, Any]]:
    """Yield the events of an Airflow task log, a file with one JSON object per line.

    Args:
        log: The log file.
        tail: Number of bytes at the file's end to read; None reads all of the file.
    """
    with log.open("rb") as file:
        if tail:
            size = file.seek(0, 2)
            file.seek(max(0, size - tail))
        text = file.read().decode(errors="replace")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the incomplete line at the start of a tail
            continue
        if isinstance(entry, dict):
            yield entry
