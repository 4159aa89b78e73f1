"""`make ray-report`: run every section, write build/ray/report.json, print a table.

python -m benchmarks.ray_report [SECTION...]     only these sections; the others keep what the report says of them
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
# One more theme is one more file that has a SECTION.
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
    """Run the sections; 1 if any of them did not see what it should."""
    known = [section.name for section in SECTIONS]
    if unknown := [name for name in names if name not in known]:
        print(f"no section {' '.join(unknown)}: choose from {' '.join(known)}", file=sys.stderr)
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
    """Print what the report says; 1 if anything in it is not as it should be."""
    table = Table(title=f"Ray on Slurm, {report['machine']['cpus']} CPUs for all nodes", show_lines=False)
    for column in ("", "what", "found", "as wanted"):
        table.add_column(column, overflow="fold")
    wrong = 0
    for section in SECTIONS:
        for number, row in enumerate(section.rows(report[section.name]) if section.name in report else []):
            wrong += row.good is False
            mark = {True: "yes", False: "NO", None: ""}[row.good]
            table.add_row(section.title if number == 0 else "", row.what, escape(row.found), mark)
        table.add_section()
    Console(width=150).print(table)
    print(f"all of it: {REPORT}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
