"""Rows of the table from the API's answers and the files of jobs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from demo.stages import TASKS, Row, Stages, times


class Answers:
    """Stands for AirflowApi: answers recorded from Airflow 3.3.2, cut to the fields that are read."""

    def __init__(self, tasks: dict[str, dict[str, Any]], xcoms: dict[tuple[str, str], Any]) -> None:
        self.instances = tasks
        self.xcoms = xcoms
        self.asked: list[tuple[str, str]] = []

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        blank = {"state": None, "try_number": 1, "start_date": None, "end_date": None}
        return [{"task_id": name, **blank, **values} for name, values in self.instances.items()]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        self.asked.append((task_id, key))
        return self.xcoms.get((task_id, key))


def rows_of(api: Answers) -> dict[str, Row]:
    """What is shown for these answers."""
    return {row.name: row for row in Stages(api, "d", "r", lambda task_id: []).look()}  # type: ignore[arg-type]


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    """The directory of a job that was submitted 30 s ago."""
    (tmp_path / "job_id").write_text("8\n")
    os.utime(tmp_path / "job_id", (time.time() - 30,) * 2)
    return tmp_path


def test_names_are_those_of_the_run_summary():
    """The demo does not import it, because that imports Airflow."""
    from llm_bridge.pipeline.summary import ROWS

    assert TASKS == ROWS


def test_a_job_queues_runs_and_ends(attempt: Path):
    queue_s, run_s, phase = times(attempt)
    assert queue_s == pytest.approx(30, abs=2) and run_s is None and phase == "queued"
    (attempt / "started.json").write_text(json.dumps({"job_id": "8", "started": time.time() - 10}))
    queue_s, run_s, phase = times(attempt)
    assert queue_s == pytest.approx(20, abs=2) and run_s == pytest.approx(10, abs=2) and phase == "running"
    (attempt / "outcome.json").write_text(json.dumps({"exit_code": 0, "ended": time.time() - 4}))
    queue_s, run_s, phase = times(attempt)
    assert run_s == pytest.approx(6, abs=2) and phase == "ended"


def test_a_directory_without_a_job_or_with_half_a_file(attempt: Path, tmp_path: Path):
    assert times(tmp_path / "nowhere") == (None, None, None)
    (attempt / "started.json").write_text('{"job_id": "8", "sta')
    assert times(attempt)[2] == "queued"


def test_a_deferred_task_shows_its_job(attempt: Path):
    begun = {"state": "deferred", "start_date": "2026-11-22T23:24:22.2Z"}
    job = {"job_id": "8", "directory": str(attempt)}
    api = Answers({"sft.train": begun, "sft.merge": {}}, {("sft.train", "slurm_job"): job})
    rows = rows_of(api)
    assert (rows["sft"].job_id, rows["sft"].label) == ("8", "queued")
    assert rows["sft merge"].label == "" and rows["upload"].state is None
    assert api.asked == [("sft.train", "slurm_job")]


def test_labels_of_states():
    assert Row("x", "success", phase="running").label == "done"  # the Ray cluster: up, and its job runs on
    assert Row("x", "deferred", phase="ended").label == "finishing"
    assert Row("x", "up_for_retry").label == "up for retry"
    assert Row("x", "upstream_failed").label == "not run"


def test_a_ray_job_is_shown_by_its_submission_id():
    ended = {"state": "success", "start_date": "2026-11-22T23:24:00Z", "end_date": "2026-11-22T23:26:23Z"}
    api = Answers({"ppo.wait": ended}, {("ppo.wait", "ray_job"): {"submission_id": "llmb-1"}})
    row = rows_of(api)["ppo"]
    assert row.reported() == {
        "name": "ppo",
        "state": "success",
        "job_id": "llmb-1",
        "queue_s": 0.0,
        "run_s": 143.0,
    }


def test_a_job_id_is_asked_for_once_a_try_and_again_until_it_is_there(attempt: Path):
    api = Answers({"sft.train": {"state": "running", "start_date": "2026-11-22T23:24:22.2Z"}}, {})
    stages = Stages(api, "d", "r", lambda task_id: [])  # type: ignore[arg-type]
    stages.look()
    api.xcoms[("sft.train", "slurm_job")] = {"job_id": "8", "directory": str(attempt)}
    assert stages.look()[1].job_id == "8"
    stages.look()
    assert len(api.asked) == 2
    api.instances["sft.train"]["try_number"] = 2
    stages.look()
    assert len(api.asked) == 3
