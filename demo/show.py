"""Show a run: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from demo.report import table
from demo.services import DemoError
from demo.stages import Row, Stages
from testing.airflow_api import ENDED, ApiError

EVERY = 1.5
PASSING = {"starting", "finishing"}  # a second or two each: no line for them


def follow(stages: Stages, console: Console, timeout: float, heading: str) -> tuple[str, list[Row]]:
    """Show the run until it has ended.

    Args:
        stages: The run.
        console: Output.
        timeout: In seconds.
        heading: First line of the table.

    Returns:
        The run's state and the last rows.

    Raises:
        DemoError: The run has not ended in time, or Airflow is unreachable.
    """
    begin = time.monotonic()
    if not console.is_terminal:
        return _until_ended(stages, timeout, Lines(console, begin))
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def draw(rows: list[Row], others: list[tuple[str, str]]) -> None:
            busy = ", ".join(f"{name} {state}" for name, state in others if state in ("running", "failed"))
            title = f"{heading}   {time.monotonic() - begin:.0f} s   {busy}"
            live.update(table(rows, title))

        return _until_ended(stages, timeout, draw)


class Lines:
    """One line for each change of a stage's or task's state."""

    def __init__(self, console: Console, begin: float) -> None:
        self.console = console
        self.begin = begin
        self.shown: dict[str, object] = {}

    def __call__(self, rows: list[Row], others: list[tuple[str, str]]) -> None:
        """Print what has changed since the last call."""
        for row in rows:
            text = "" if row.label in PASSING else row.label
            if row.job_id and text:
                text += f"  job {row.job_id}"
                # Unknown where the cluster's files are not visible: in containers.
                if row.state in ("success", "failed") and row.run_s is not None:
                    text += f"  queued {row.queue_s or 0:.1f} s, ran {row.run_s:.1f} s"
            key = (row.label, row.job_id)
            self._line(row.name, key, text)
        for name, state in others:
            if state == "failed":
                self._line(name, state, state)

    def _line(self, name: str, key: object, text: str) -> None:
        if text and self.shown.get(name) != key:
            self.shown[name] = key
            seconds = time.monotonic() - self.begin
            self.console.print(f"{seconds:6.0f} s  {name:<12} {text}", markup=False, highlight=False)


def _until_ended(
    stages: Stages, timeout: float, draw: Callable[[list[Row], list[tuple[str, str]]], None]
) -> tuple[str, list[Row]]:
    deadline = time.monotonic() + timeout
    silent_since: float | None = None
    while True:
        try:
            state = stages.api.run_state(stages.dag_id, stages.run_id)
            rows = stages.look()
            silent_since = None
        except ApiError as error:
            # On a busy machine the API server may answer late.
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > 60:
                raise DemoError(f"Airflow has been unreachable for 60 s: {error}") from error
            time.sleep(EVERY)
            continue
        draw(rows, [(task["task_id"], str(task["state"])) for task in stages.other_tasks()])
        if state in ENDED:
            return state, rows
        if time.monotonic() > deadline:
            late = ", ".join(row.name for row in rows if row.state == "deferred") or "no stage"
            raise DemoError(
                f"the run has not ended after {timeout:.0f} s (running: {late}). It continues in Airflow"
            )
        time.sleep(EVERY)
