"""Arguments of SlurmJobSensor."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import TaskDeferred

from llm_bridge.exceptions import ConfigError
from llm_bridge.sensors.slurm import SlurmJobSensor
from testing.task_context import Task

SUBMITTED = {"job_id": "7", "cluster": "local", "directory": "/w/a"}


def test_a_hanging_job_of_another_task_cannot_be_retried() -> None:
    with pytest.raises(ValueError, match="cannot submit the job of another task again"):
        SlurmJobSensor(task_id="t", submitted=SUBMITTED, hang_minutes=30, on_hang="retry")


@pytest.mark.parametrize("job_id", ["", "abc", "7;x", "99999999999"])
def test_what_is_no_job_id_is_refused(job_id: str) -> None:
    sensor = SlurmJobSensor(task_id="t", submitted={**SUBMITTED, "job_id": job_id})
    with pytest.raises(ConfigError, match="a job id is a whole number"):
        sensor.execute(Task("t").context)


def test_the_trigger_never_cancels_the_job() -> None:
    sensor = SlurmJobSensor(task_id="t", submitted=SUBMITTED, hang_minutes=30)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(Task("t").context)
    _, arguments = deferred.value.trigger.serialize()
    assert (arguments["job_id"], arguments["cancel_on_kill"]) == ("7", False)
    assert arguments["hang"]["minutes"] == 30
