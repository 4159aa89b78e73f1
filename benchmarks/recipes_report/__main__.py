"""Run ``make recipes-report``: train every recipe's tiny twin to a published model, and try bad inputs.

python -m benchmarks.recipes_report [RECIPE | BAD INPUT...]     only these
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path("build/recipes")
WIDTH = 200


def main(names: list[str]) -> int:
    """Run twins and bad inputs, and write the report.

    Returns:
        1 if a result is not as expected, 2 for an unknown name, else 0.
    """
    # Before the import of Airflow: its home.
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ |= {"AIRFLOW_HOME": str(FOLDER.resolve() / "client"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    screen, began = sys.stdout, time.monotonic()
    found: dict[str, Any] = {"took_s": 0.0, "recipes": [], "bad_inputs": []}
    with (FOLDER / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        from benchmarks.recipes_report.bad_inputs import BAD_INPUTS
        from benchmarks.recipes_report.play import player
        from testing.twins import TWINS, Twin

        known = [*(twin.recipe for twin in TWINS), *(bad.name for bad in BAD_INPUTS)]
        if unknown := [name for name in names if name not in known]:
            print(f"unknown: {' '.join(unknown)}. Choose from {' '.join(known)}", file=screen)
            return 2
        with player(FOLDER.resolve()) as play:
            for kind, cases in (("bad_inputs", BAD_INPUTS), ("recipes", TWINS)):
                for case in cases:
                    if names and (case.recipe if isinstance(case, Twin) else case.name) not in names:
                        continue
                    row = play(case)
                    found[kind].append(row)
                    mark = "as expected" if row["as_expected"] else "NOT AS EXPECTED"
                    print(
                        f"recipes-report: {row['name']:<28} {row['took_s']:6.1f} s  {mark}",
                        file=screen,
                        flush=True,
                    )
                    found["took_s"] = round(time.monotonic() - began, 1)
                    (FOLDER / "report.json").write_text(
                        json.dumps(found, indent=2, ensure_ascii=False) + "\n"
                    )
    show(found)
    print(f"report: {FOLDER}/report.json; log: {FOLDER}/log.txt")
    return 0 if all(row["as_expected"] for row in found["recipes"] + found["bad_inputs"]) else 1


def show(found: dict[str, Any]) -> None:
    """Print both tables."""
    console = Console(width=WIDTH)
    for title, columns in (
        (
            "Twins of recipes",
            ("name", "stages", "took_s", "metric", "before", "after", "published", "as_expected"),
        ),
        ("Bad inputs", ("name", "how", "stage", "found", "took_s", "as_expected")),
    ):
        table = Table(*columns, title=title, show_lines=True)
        rows = found["recipes"] if "metric" in columns else found["bad_inputs"]
        for row in rows:
            table.add_row(*(_cell(row[column]) for column in columns))
        console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
