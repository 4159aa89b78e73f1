"""Report of a demo run: build/demo/report.json, and the table on the terminal."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from demo.failures import Failure
from demo.stages import Row

COLOURS = {"done": "green", "failed": "red", "not run": "red", "skipped": "dim", "running": "yellow"}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
JOB_WIDTH = 22


def build(
    rows: list[dict[str, Any]],
    model: dict[str, Any] | None,
    wall_s: float,
    *,
    failure: Failure | None = None,
    error: str | None = None,
    peak_bytes: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Return the report.

    Args:
        rows: `{"name", "state", "job_id", "queue_s", "run_s"}` of each stage.
        model: `{"repo_id", "revision", "files", "verified"}`; None without a model.
        wall_s: Duration of the demo in seconds, installation excluded.
        failure: The first failed task of the run.
        error: Any other error.
        peak_bytes: Peak memory of all processes together.
        **more: Further keys.
    """
    keys = ("name", "state", "job_id", "queue_s", "run_s")
    report: dict[str, Any] = {
        "stages": [{key: row.get(key) for key in keys} for row in rows],
        "model": model or {"repo_id": None, "revision": None, "files": [], "verified": False},
        "wall_s": round(wall_s, 1),
    }
    if peak_bytes:
        report["peak_memory_gib"] = round(peak_bytes / 2**30, 2)
    if failure:
        report["failure"] = {
            "task": failure.task_id,
            "log": str(failure.log) if failure.log else None,
            "cause": "\n".join(failure.cause),
        }
    if error:
        report["error"] = error
    return report | more


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report atomically: a reader never sees an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def final_rows(rows: list[Row], summary: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the rows with the values of the run's summary task (Slurm's times); the rows' own where it has none."""
    seen = {row.name: row.reported() for row in rows}
    for stage in (summary or {}).get("stages", []):
        known = {key: value for key, value in stage.items() if value is not None}
        seen[stage["name"]] = {**seen.get(stage["name"], {}), **known}
    return list(seen.values())


def table(rows: list[Row], title: str = "", with_log: bool = True) -> Table:
    """Return the stages as a table; the log's column takes the remaining width."""
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="",
        pad_edge=False,
        collapse_padding=True,
        expand=with_log,
    )
    shown.add_column("stage", no_wrap=True, min_width=11)
    shown.add_column("state", no_wrap=True, min_width=9)
    job_width = JOB_WIDTH if with_log else None
    shown.add_column("job", no_wrap=True, min_width=job_width, max_width=job_width, overflow="ellipsis")
    shown.add_column("queue s", justify="right", no_wrap=True, min_width=7)
    shown.add_column("run s", justify="right", no_wrap=True, min_width=6)
    if with_log:
        shown.add_column("newest line of the log", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        state = Text(row.label, style=COLOURS.get(row.label, ""))
        cells = (row.name, state, row.job_id or "", _seconds(row.queue_s), _seconds(row.run_s))
        shown.add_row(*cells, *([_plain(row.detail)] if with_log else []))
    return shown


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _plain(text: str) -> Text:
    """Return a log line without colours and control characters, and not parsed as rich's markup."""
    plain = ANSI.sub("", text)
    return Text("".join(letter if letter.isprintable() else " " for letter in plain))
