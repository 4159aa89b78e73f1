"""Arguments of RayJobSensor, and its result."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from llm_bridge.ray.client import RayJobDetails, RayTarget
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.ray.spec import RayJob
from llm_bridge.remote.attempt_dir import Outcome
from llm_bridge.sensors.ray import DEFAULT_POLL_SECONDS, RayJobSensor
from testing.task_context import Task

TARGET = RayTarget(address="http://ray.example.org:8265")
SUBMITTED = {**TARGET.to_json(), "submission_id": "j", "attempt_directory": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"job": RayJob(entrypoint=["true"])}, "give both job and ray_cluster, or neither"),
        ({"pending_minutes": 0}, "must be greater than 0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayJobSensor(task_id="t", submitted=SUBMITTED, **options)


def test_the_earlier_of_both_time_limits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_bridge.sensors.ray.time.time", lambda: 1000.0)
    sensor = RayJobSensor(task_id="t", submitted=SUBMITTED, timeout=60)
    assert sensor.deadline() == 1060.0
    limited = RayJobSensor(
        task_id="t", submitted=SUBMITTED, timeout=60, execution_timeout=timedelta(seconds=5)
    )
    assert limited.deadline() == 1005.0


def test_a_sensor_without_recovery_follows_the_submitted_job() -> None:
    task = Task("t")
    with pytest.raises(TaskDeferred) as deferred:
        RayJobSensor(task_id="t", submitted=SUBMITTED, pending_minutes=None).execute(task.context)
    _, arguments = deferred.value.trigger.serialize()
    assert (arguments["submission_id"], arguments["own_stage"]) == ("j", None)
    assert (arguments["poll_seconds"], arguments["pending_until"]) == (DEFAULT_POLL_SECONDS, None)
    assert task.xcoms["ray_job"] == {"submission_id": "j", "directory": None}


@pytest.mark.parametrize(
    ("fields", "run_s"),
    [
        ({"outcome": Outcome(0, 12.5, 10.0)}, 2.5),
        ({"job": RayJobDetails("SUCCEEDED", start_time=1000, end_time=4000)}, 3.0),
        ({}, 0.0),
    ],
)
def test_the_result_has_the_jobs_own_run_time_before_rays(fields: dict[str, Any], run_s: float) -> None:
    event = RayJobEvent(RayEndReason.SUCCEEDED, result=[1], target=TARGET, submission_id="j", **fields)
    sensor = RayJobSensor(task_id="t", submitted=SUBMITTED)
    result = sensor.execute_complete(Task("t").context, event.to_json())
    assert result == {"submission_id": "j", "status": "SUCCEEDED", "run_s": run_s, "result": [1]}
