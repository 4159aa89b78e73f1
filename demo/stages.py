"""Rows of the demo's table, from Airflow's API and from the files that jobs write."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo.failures import error_lines, last_line
from testing.airflow_api import AirflowApi

# Row -> the task that it shows, as in llm_bridge.pipeline.summary (importing that costs 5 s: it imports Airflow).
TASKS = {
    "prepare": "prepare.run",
    "sft": "sft.train",
    "sft merge": "sft.merge",
    "ray cluster": "ppo.ray_up",
    "ppo": "ppo.wait",
    "merge": "merge.run",
    "evaluate": "evaluate.run",
    "upload": "upload.run",
}
PPO = "ppo.wait"
ACTIVE = {"scheduled", "queued", "running", "deferred"}
BROKEN = {"failed", "up_for_retry"}
# Labels of Airflow's states that would mislead here: a deferred task has a job that is queued or running.
LABELS = {
    None: "",
    "scheduled": "starting",
    "queued": "starting",
    "deferred": "running",
    "success": "done",
    "upstream_failed": "not run",
}


@dataclass
class Row:
    """Row of one stage.

    Attributes:
        name: Stage.
        state: Airflow's state of the task; None before it is scheduled.
        job_id: Slurm job id or Ray submission id.
        queue_s: Seconds in Slurm's queue so far.
        run_s: Seconds of running so far.
        phase: State of the job: `queued`, `running`, `ended`; None without a job.
        detail: Newest line of the task's log, or the cause of its failure.
    """

    name: str
    state: str | None = None
    job_id: str | None = None
    queue_s: float | None = None
    run_s: float | None = None
    phase: str | None = None
    detail: str = ""

    @property
    def label(self) -> str:
        """The state as it is shown."""
        if self.state in ACTIVE and self.phase:
            return "finishing" if self.phase == "ended" else self.phase
        return LABELS.get(self.state, str(self.state).replace("_", " "))

    def reported(self) -> dict[str, Any]:
        """Return the row as it stands in report.json."""
        return {key: asdict(self)[key] for key in ("name", "state", "job_id", "queue_s", "run_s")}


class Stages:
    """Stages of one run.

    Args:
        api: Client of the Airflow that runs it.
        dag_id: DAG of the run.
        run_id: Id of the run.
        logs: Returns the log files of a task.
    """

    def __init__(self, api: AirflowApi, dag_id: str, run_id: str, logs: Any) -> None:
        self.api = api
        self.dag_id, self.run_id = dag_id, run_id
        self.logs = logs
        self.tasks: list[dict[str, Any]] = []
        self._jobs: dict[tuple[str, int], dict[str, Any]] = {}

    def look(self) -> list[Row]:
        """Query the tasks' states and return the rows."""
        self.tasks = self.api.tasks(self.dag_id, self.run_id)
        by_id = {task["task_id"]: task for task in self.tasks}
        return [self._row(name, by_id.get(task_id, {})) for name, task_id in TASKS.items()]

    def other_tasks(self) -> list[dict[str, Any]]:
        """Return the tasks without a row of their own (check, ray_down, ...)."""
        return [task for task in self.tasks if task["task_id"] not in TASKS.values()]

    def _row(self, name: str, task: dict[str, Any]) -> Row:
        row = Row(name, state=task.get("state"))
        if not task.get("start_date"):
            return row
        job = self._job(task)
        row.job_id = job.get("job_id")
        if directory := job.get("directory"):
            row.queue_s, row.run_s, row.phase = times(Path(directory))
        elif row.job_id:
            # A Ray job has no queue of its own: it waited with its cluster.
            row.queue_s, row.run_s = 0.0, _seconds(task)
        row.detail = self._detail(task)
        return row

    def _detail(self, task: dict[str, Any]) -> str:
        if task["state"] in ACTIVE:
            return last_line(self.logs(task["task_id"]))
        if task["state"] in BROKEN:
            causes = (error_lines(file) for file in reversed(self.logs(task["task_id"])))
            return next((cause[0] for cause in causes if cause), "")
        return ""

    def _job(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return job id and directory as the task stored them; queried once per try."""
        task_id = task["task_id"]
        known = (task_id, task.get("try_number") or 0)
        if known not in self._jobs:
            if task_id == PPO:
                ray_job = self.api.xcom(self.dag_id, self.run_id, PPO, "ray_job") or {}
                job = {"job_id": ray_job.get("submission_id")}
            else:
                job = self.api.xcom(self.dag_id, self.run_id, task_id, "slurm_job") or {}
            if not job.get("job_id"):
                return {}
            self._jobs[known] = job
        return self._jobs[known]


def times(attempt: Path) -> tuple[float | None, float | None, str | None]:
    """Return queue seconds, run seconds so far and phase of a job, from the files of its attempt's directory."""
    try:
        submitted = (attempt / "job_id").stat().st_mtime
    except OSError:
        return None, None, None
    started, ended = _read(attempt / "started.json"), _read(attempt / "outcome.json")
    if "started" not in started:
        return round(time.time() - submitted, 1), None, "queued"
    begin = started["started"]
    queue_s = round(max(0.0, begin - submitted), 1)
    if "ended" in ended:
        return queue_s, round(ended["ended"] - begin, 1), "ended"
    return queue_s, round(time.time() - begin, 1), "running"


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _seconds(task: dict[str, Any]) -> float:
    begin = datetime.fromisoformat(task["start_date"])
    end = datetime.fromisoformat(task["end_date"]) if task.get("end_date") else datetime.now(UTC)
    return round((end - begin).total_seconds(), 1)
