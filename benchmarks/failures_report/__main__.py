"""``make failures-report``: cause failures on a local cluster of its own, and write down what was found and done.

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
    """Exit code 1 when anything is not as expected, 2 for a case that does not exist."""
    # Before Airflow is imported: a home of its own, and where its loggers write.
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ |= {"AIRFLOW_HOME": str(FOLDER.resolve() / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    screen, began = sys.stdout, time.monotonic()
    with (FOLDER / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        from benchmarks.failures_report import report, table
        from benchmarks.failures_report.cases import CASES, left_out

        known = [case.name for case in CASES]
        if unknown := [name for name in names if name not in known]:
            print(f"no case {' '.join(unknown)}: choose from {' '.join(known)}", file=screen)
            return 2
        rows: list[dict[str, Any]] = []
        with report.impatient(), report.site() as site:
            for case in CASES:
                if names and case.name not in names:
                    continue
                print(f"\n===== {case.name}: {case.how}", flush=True)
                rows.append(report.row(case, site))
                print(table.progress(rows[-1]), file=screen, flush=True)
        found = {"took_s": round(time.monotonic() - began, 1), "rows": rows, "left_out": left_out()}
        (FOLDER / "report.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        table.show(found, screen)
    print(f"all of it: {FOLDER}/report.json; what the tasks logged: {FOLDER}/log.txt")
    return 0 if all(row["as_expected"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
