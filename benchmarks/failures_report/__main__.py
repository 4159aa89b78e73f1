"""``make failures-report``: cause failures on a local cluster of its own, and write down what was found and done."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

OUT = Path("build/failures/report.json")


def main() -> int:
    """Exit code 1 when a class or what follows is another one than expected."""
    # Before Airflow is imported: a home of its own.
    home = tempfile.mkdtemp(prefix="llm-bridge-failures-")
    os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    from benchmarks.failures_report.report import run

    rows = run(only=set(sys.argv[1:]))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{'ok   ' if row['as_expected'] else 'WRONG'} {row['cause']:<16} {row['found']:<16} {row['action']}"
        )
    print(f"written: {OUT}")
    return 0 if all(row["as_expected"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
