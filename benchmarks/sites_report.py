"""Run ``make sites-report``: play every quirk of a site on a local cluster, compare outcomes with the expected ones.

python -m benchmarks.sites_report [QUIRK...]     only these rows
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from testing.quirks.play import Player
    from testing.quirks.quirk import Quirk

FOLDER = Path("build/sites")
WIDTH, MAX_CHARACTERS = 200, 200


def main(names: list[str]) -> int:
    """Play the quirks and write the report.

    Returns:
        1 if an outcome is not as expected, 2 for an unknown quirk, else 0.
    """
    # Before the import of Airflow: its home.
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ |= {"AIRFLOW_HOME": str(FOLDER.resolve() / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    screen, began, rows = sys.stdout, time.monotonic(), []
    with (FOLDER / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        from testing.quirks.play import odd_cluster
        from testing.quirks.table import BY_NAME, QUIRKS

        if unknown := [name for name in names if name not in BY_NAME]:
            print(f"unknown quirks {' '.join(unknown)}: choose from {' '.join(BY_NAME)}", file=screen)
            return 2
        with odd_cluster(log) as player:
            for quirk in QUIRKS:
                if names and quirk.name not in names:
                    continue
                rows.append(play(player, quirk))
                print(progress(rows[-1]), file=screen, flush=True)
                found = {"took_s": round(time.monotonic() - began, 1), "rows": rows}
                (FOLDER / "report.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    show(rows, sys.stdout)
    print(f"report: {FOLDER}/report.json; log of the tasks: {FOLDER}/log.txt")
    return 0 if all(row["as_expected"] for row in rows) else 1


def play(player: Player, quirk: Quirk) -> dict[str, Any]:
    """Play a quirk and return its row of the report."""
    why = quirk.lacks()
    cells = {} if why else {column: cell.as_dict() for column, cell in player.play(quirk).items()}
    row = {"quirk": quirk.name, "how": quirk.how, "cells": cells} | ({"skipped": why} if why else {})
    return row | {"as_expected": all(cell["as_expected"] for cell in cells.values())}


def progress(row: Mapping[str, Any]) -> str:
    """Return the line that is printed when a quirk is played."""
    seconds = sum(cell["took_s"] for cell in row["cells"].values())
    wrong = [column for column, cell in row["cells"].items() if not cell["as_expected"]]
    mark = "as expected" if not wrong else f"NOT AS EXPECTED: {', '.join(wrong)}"
    if "skipped" in row:
        mark = f"skipped: {row['skipped']}"
    return f"sites-report: {row['quirk']:<18} {seconds:5.1f} s  {mark}"


def show(rows: list[dict[str, Any]], screen: TextIO) -> None:
    """Print the table."""
    from testing.quirks.quirk import COLUMNS

    table = Table(title="Quirks of sites", show_lines=True, expand=True)
    for column, ratio in {"quirk": None, "how": 2, **dict.fromkeys(COLUMNS, 2)}.items():
        table.add_column(column, overflow="fold", ratio=ratio, no_wrap=column == "quirk")
    for row in rows:
        cells = [
            _cell(row["cells"][column]) if row["cells"] else f"skipped: {row['skipped']}"
            for column in COLUMNS
        ]
        table.add_row(*(escape(text) for text in (row["quirk"], row["how"], *cells)))
    Console(file=screen, width=WIDTH).print(table)


def _cell(cell: Mapping[str, Any]) -> str:
    text = str(cell["found"])[:MAX_CHARACTERS]
    return text if cell["as_expected"] else f"NOT AS EXPECTED ({cell['expected']}): {text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
