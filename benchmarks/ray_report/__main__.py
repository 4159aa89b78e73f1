"""Run `make ray-report`: run every section, write build/ray/report.json, print a table.

python -m benchmarks.ray_report [SECTION...]     only these sections; the report keeps the others' results
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.ray_report import allocation, bring_up, faults, idle, orphans, sharing, token
from benchmarks.ray_report.support import Section, site

REPORT = Path("build/ray/report.json")
# A module with a SECTION each.
SECTIONS: tuple[Section, ...] = (
    bring_up.SECTION,
    faults.SECTION,
    token.SECTION,
    sharing.SECTION,
    idle.SECTION,
    orphans.SECTION,
    allocation.SECTION,
)


def main(names: list[str]) -> int:
    """Run the sections; return 1 if a result is not as expected, 2 for an unknown section."""
    known = [section.name for section in SECTIONS]
    if unknown := [name for name in names if name not in known]:
        print(f"unknown sections {' '.join(unknown)}: choose from {' '.join(known)}", file=sys.stderr)
        return 2
    report: dict[str, Any] = json.loads(REPORT.read_text()) if names and REPORT.exists() else {}
    with site() as cluster:
        for section in SECTIONS:
            if names and section.name not in names:
                continue
            print(f"ray-report: {section.title} ...", flush=True)
            began, load = time.monotonic(), os.getloadavg()[0]
            found = section.run(cluster)
            about = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "took_s": round(time.monotonic() - began, 1),
                "load_before": round(load, 1),
            }
            report[section.name] = {**about, **found}
            report["machine"] = {"cpus": os.cpu_count()}
            REPORT.parent.mkdir(parents=True, exist_ok=True)
            REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return show(report)


def show(report: dict[str, Any]) -> int:
    """Print the report; return 1 if a result is not as expected."""
    table = Table(title=f"Ray on Slurm, {report['machine']['cpus']} CPUs for all nodes", show_lines=False)
    for column in ("", "measurement", "result", "as expected"):
        table.add_column(column, overflow="fold")
    wrong = 0
    for section in SECTIONS:
        for number, row in enumerate(section.rows(report[section.name]) if section.name in report else []):
            wrong += row.good is False
            mark = {True: "yes", False: "NO", None: ""}[row.good]
            table.add_row(section.title if number == 0 else "", row.what, escape(row.found), mark)
        table.add_section()
    Console(width=150).print(table)
    print(f"report: {REPORT}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
