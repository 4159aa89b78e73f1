"""The report as people read it."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 200
# Column -> its share of the width.
COLUMNS = {
    "case": 3,
    "how": 6,
    "class": 4,
    "evidence": 10,
    "what follows": 8,
    "tries": 3,
    "alerts": 8,
    "as expected": 3,
}


def progress(row: dict[str, Any]) -> str:
    """One line when a case is done."""
    mark = "as expected" if row["as_expected"] else f"NOT AS EXPECTED: {'; '.join(row['wrong'])}"
    return f"failures-report: {row['case']:<16} {row['took_s']:5.1f} s  {mark}"


def show(found: dict[str, Any], screen: TextIO) -> None:
    """Print the table."""
    table = Table(title="Failures, what was found and what was done", show_lines=True)
    for column, ratio in COLUMNS.items():
        table.add_column(column, overflow="fold", ratio=ratio)
    for row in found["rows"]:
        table.add_row(*(escape(cell) for cell in _cells(row)))
    console = Console(file=screen, width=WIDTH)
    console.print(table)
    for what, why in found["left_out"].items():
        console.print(f"not caused for real: {what}: {why}", markup=False)


def _cells(row: dict[str, Any]) -> list[str]:
    expected = "" if row["found"] == row["expected"] else f" (not {row['expected']})"
    node = f" [{row['node']}]" if row["node"] else ""
    tried = f"{row['attempts']} jobs in {row['tries']} tries"
    if row["steps_lost"] is not None:
        tried += f", {row['steps_lost']} steps lost"
    told = "\n".join(one["subject"].removeprefix("[llm-bridge] ") for one in row["alerts"])
    how = row["how"] if row["caused"] == "real" else f"(log excerpt) {row['how']}"
    return [
        row["case"],
        how,
        f"{row['found']}{expected}",
        f"{row['evidence'][:200]}{node}",
        f"{row['action']}; the task {row['ended']}",
        tried,
        told or "none",
        "yes" if row["as_expected"] else f"NO: {'; '.join(row['wrong'])}",
    ]
