"""report.json and the table."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from demo import report
from demo.failures import Failure
from demo.stages import Row

ROWS = [
    Row("prepare", "success", "7", 0.4, 3.7),
    Row(
        "ppo",
        "deferred",
        "llmb-ppo.submit-5dc0bdc5d18c-1",
        0.0,
        143.0,
        detail="\x1b[36mstep:1\x1b[0m [bold]\x07",
    ),
    Row("merge", "upstream_failed"),
]
STAGE_KEYS = {"name", "state", "job_id", "queue_s", "run_s"}


def test_report_has_the_promised_keys(tmp_path: Path):
    model = {"repo_id": "demo/m", "revision": "abc", "files": [{"path": "config.json"}], "verified": True}
    rows = [row.reported() for row in ROWS]
    report.write(tmp_path / "new" / "report.json", report.build(rows, model, 12.345, peak_bytes=3 * 2**30))
    read = json.loads((tmp_path / "new" / "report.json").read_text())
    assert read["model"] == model
    assert read["wall_s"] == 12.3
    assert read["peak_memory_gib"] == 3.0
    assert [set(stage) for stage in read["stages"]] == [STAGE_KEYS] * 3
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "report.json"]


def test_report_of_a_failure_names_task_log_and_cause():
    failure = Failure("sft.train", Path("/logs/attempt=3.log"), ["ValueError: no", "such thing"])
    made = report.build([], None, 1, failure=failure)
    assert made["model"] == {"repo_id": None, "revision": None, "files": [], "verified": False}
    assert made["failure"] == {
        "task": "sft.train",
        "log": "/logs/attempt=3.log",
        "cause": "ValueError: no\nsuch thing",
    }
    text = failure.text()
    assert "sft.train" in text and "/logs/attempt=3.log" in text and "such thing" in text


def test_slurms_own_times_win_and_gaps_are_filled():
    seen = [Row("sft", "deferred", "8", 0.2, 70.0), Row("ray cluster", "success", "10", 0.1, 25.0)]
    summary = {
        "stages": [
            {"name": "sft", "state": "success", "job_id": "8", "queue_s": 0.0, "run_s": 82.0},
            {"name": "ray cluster", "state": "success", "job_id": None, "queue_s": None, "run_s": None},
        ]
    }
    final = report.final_rows(seen, summary)
    assert final[0] == {"name": "sft", "state": "success", "job_id": "8", "queue_s": 0.0, "run_s": 82.0}
    assert final[1]["run_s"] == 25.0
    assert report.final_rows(seen, None)[0]["run_s"] == 70.0


def test_table_fits_and_shows_what_jobs_print_as_it_is():
    console = Console(width=90, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table(ROWS, "a run"))
    text = console.export_text()
    assert all(len(line) <= 90 for line in text.splitlines())
    assert "step:1 [bold]" in text and "\x1b" not in text and "\x07" not in text
    assert "not run" in text and "done" in text
