"""Run ``make bench``: every section, build/bench/report.json, the table, docs/performance.md.

python -m benchmarks.bench [SECTION...]     only these, in this order; the report keeps the others' results
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from typing import Any

from benchmarks.bench.support import FOLDER, load

# Before the import of Airflow: its home, and no database of the user's.
FOLDER.mkdir(parents=True, exist_ok=True)
os.environ |= {"AIRFLOW_HOME": str(FOLDER.resolve() / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

from benchmarks.bench import loud, notice, others, page, parse, run_page, scale, stack, submit, triggerer  # noqa: E402
from benchmarks.bench.support import Bench, Section  # noqa: E402

REPORT, LOG = FOLDER / "report.json", FOLDER / "log.txt"
SECTIONS: tuple[Section, ...] = (
    notice.NOTICE,
    notice.RPCS,
    notice.CONNECTIONS,
    triggerer.SECTION,
    submit.SECTION,
    stack.HOP,
    others.RAY,
    stack.PIPELINE,
    parse.SECTION,
    others.UPLOAD,
    run_page.SECTION,
    loud.SECTION,
    scale.SECTION,
    others.TESTS,
)


def main(names: list[str]) -> int:
    """Run the sections; return 1 if one failed, 2 for an unknown section."""
    by_name = {section.name: section for section in SECTIONS}
    if unknown := [name for name in names if name not in by_name]:
        print(f"unknown sections {' '.join(unknown)}: choose from {' '.join(by_name)}", file=sys.stderr)
        return 2
    report: dict[str, Any] = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    bench, failed = Bench(), []
    try:
        for section in [by_name[name] for name in names or by_name]:
            print(f"bench: {section.title} ({section.name}) ...", flush=True)
            began, before = time.monotonic(), load()
            try:
                if section.needs_cluster:
                    bench.up()
                # What operators and peers log goes to a file.
                with LOG.open("a") as log, redirect_stdout(log), redirect_stderr(log):
                    found = section.run(bench)
            except (Exception, SystemExit) as error:
                # The others' figures are worth having, too.
                failed.append(section.name)
                print(f"bench: {section.name} failed: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            report[section.name] = {
                "at": datetime.now(UTC).isoformat(timespec="minutes"),
                "took_s": round(time.monotonic() - began, 1),
                "load": [before, load()],
                "cpus": os.cpu_count(),
                "found": found,
            }
            REPORT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            page.show([section], report)
    finally:
        bench.down()
    print("\nAll sections of the report:")
    page.show(SECTIONS, report)
    page.write(SECTIONS, report)
    print(f"report: {REPORT}; page: {page.PAGE}")
    if failed:
        print(f"bench: not measured: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
