"""Table of the report for the terminal."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH, MAX_CHARACTERS = 200, 240
# Column -> its share of the width; None for the width of its content.
COLUMNS: dict[str, int | None] = {
    "case": None,
    "how": 6,
    "class": 4,
    "evidence": 10,
    "what follows": 8,
    "tries": 3,
    "alerts": 8,
    "as expected": 3,
}


def progress(row: dict[str, Any]) -> str:
    """Return the line that is printed when a case is done."""
    mark = "as expected" if row["as_expected"] else f"NOT AS EXPECTED: {'; '.join(row['wrong'])}"
    return f"failures-report: {row['case']:<16} {row['took_s']:5.1f} s  {mark}"


def show(found: dict[str, Any], screen: TextIO) -> None:
    """Print the table."""
    table = Table(title="Failures, diagnoses and actions", show_lines=True, expand=True)
    for column, ratio in COLUMNS.items():
        table.add_column(column, overflow="fold", ratio=ratio, no_wrap=column == "case")
    for row in found["rows"]:
        table.add_row(*(escape(cell) for cell in _cells(row)))
    console = Console(file=screen, width=WIDTH)
    console.print(table)
    for what, why in found["left_out"].items():
        console.print(f"not caused for real: {what}: {why}", markup=False)


def _cells(row: dict[str, Any]) -> list[str]:
    expected = "" if row["found"] == row["expected"] else f" (not {row['expected']})"
    node = f" [{row['node']}]" if row["node"] else ""
    tried = f"{_number(row['attempts'], 'job', 'jobs')}, {_number(row['tries'], 'try', 'tries')}"
    if row["steps_lost"] is not None:
        tried += f", {_number(row['steps_lost'], 'step', 'steps')} lost"
    return [
        row["case"],
        row["how"] if row["caused"] == "real" else f"{row['how']} (a log)",
        f"{row['found']}{expected}",
        f"{row['evidence'][:MAX_CHARACTERS]}{node}",
        f"{row['action']}; the task {row['ended']}"[:MAX_CHARACTERS],
        tried,
        "\n".join(_subject(one["subject"], row["case"]) for one in row["alerts"]) or "none",
        "yes" if row["as_expected"] else f"NO: {'; '.join(row['wrong'])}",
    ]


def _subject(subject: str, case: str) -> str:
    """Return a subject without its common prefix."""
    return f"✉ {subject.removeprefix(f'[llm-bridge] failures: {case}').lstrip(': ')}"


def _number(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
