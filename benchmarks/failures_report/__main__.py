"""Run ``make failures-report``: cause failures on a local cluster, compare the reactions with the expected ones.

python -m benchmarks.failures_report [CASE...]     only these cases
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

FOLDER = Path("build/failures")


def main(names: list[str]) -> int:
    """Run the cases and write the report.

    Returns:
        1 if a result is not as expected, 2 for an unknown case, else 0.
    """
    # Before the import of Airflow: its home, and the output of its loggers.
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ |= {"AIRFLOW_HOME": str(FOLDER.resolve() / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    screen, began = sys.stdout, time.monotonic()
    with (FOLDER / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        from benchmarks.failures_report import report, table
        from benchmarks.failures_report.cases import CASES, left_out

        known = [case.name for case in CASES]
        if unknown := [name for name in names if name not in known]:
            print(f"unknown cases {' '.join(unknown)}: choose from {' '.join(known)}", file=screen)
            return 2
        rows: list[dict[str, Any]] = []
        with report.short_timeouts(), report.site() as site:
            for case in CASES:
                if names and case.name not in names:
                    continue
                print(f"\n===== {case.name}: {case.how}", flush=True)
                rows.append(report.row(case, site))
                print(table.progress(rows[-1]), file=screen, flush=True)
        found = {"took_s": round(time.monotonic() - began, 1), "rows": rows, "left_out": left_out()}
        (FOLDER / "report.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        table.show(found, screen)
    print(f"report: {FOLDER}/report.json; log of the tasks: {FOLDER}/log.txt")
    return 0 if all(row["as_expected"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
