"""The secrets of a job are removed however it ends for good; a job that Slurm runs again still has them."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.utils.state import DagRunState

from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.operators.orphans import ReapOrphansOperator
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.operators.slurm import FOLLOWUP_XCOM, SlurmCancelOperator, SlurmSubmitOperator
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.ray.spec import RayJob
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.slurm.events import SlurmJobEvent
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing import causes
from testing.small_ray import SETTINGS
from testing.waiting import until

KEY = "0123456789abcdef"
NO_REQUEUE = Resources(options={"no-requeue": None})


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose password ends in a line end."""
    monkeypatch.setenv("AIRFLOW_CONN_WANDB_TEST", f'{{"conn_type": "generic", "password": "{KEY}\\n"}}')


class Job:
    """A job that records its key when it starts, and then runs its script."""

    def __init__(self, slurm: Any, name: str) -> None:
        self.slurm = slurm
        self.stage = f"{slurm.workspace}/left/{''.join(c if c.isalnum() else '-' for c in name)}"

    def operator(self, script: str = "sleep 60", **more: Any) -> SlurmSubmitOperator:
        options = {key: more.pop(key) for key in ("followed_by",) if key in more}
        return SlurmSubmitOperator(task_id="t", job=self.job(script, **more), **options)

    def job(self, script: str = "sleep 60", **more: Any) -> SlurmJob:
        text = f'#!/bin/bash\necho "$WANDB_API_KEY" >> {self.stage}/keys\n{script}\n'
        values = {"cluster": "test", "directory": self.stage} | more
        if "template" not in values:
            values["script"] = text
        return SlurmJob(secrets={"wandb": "wandb_test"}, **values)

    def keys(self) -> list[str]:
        """Return the key that each start of the job had."""
        return self.slurm.run("login", ["cat", f"{self.stage}/keys"], user="svc").stdout.split()

    def secrets(self) -> list[str]:
        """Return the stage's folders of secrets."""
        find = ["find", self.stage, "-name", "secrets"]
        return self.slurm.run("login", find, user="svc").stdout.split()

    def until_it_runs(self) -> None:
        until(lambda: self.keys() == [KEY])


@pytest.fixture
def it(slurm: Any, request: pytest.FixtureRequest) -> Job:
    return Job(slurm, request.node.name)


def followed(trigger: Any, meddle: Callable[[], Any]) -> dict[str, Any]:
    """Return the trigger's event; ``meddle`` is called while it follows the job."""

    async def both() -> Any:
        outcome = asyncio.create_task(trigger.outcome())
        await asyncio.to_thread(meddle)
        return await asyncio.wait_for(outcome, 90)

    return asyncio.run(both())


def slurm_state(event: dict[str, Any]) -> str:
    info = SlurmJobEvent.from_json(event).info
    return info.state if info else ""


def test_a_job_that_succeeds_leaves_none(task: Any, it: Job) -> None:
    task.run(it.operator("true"))
    assert it.keys() == [KEY] and it.secrets() == []


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$", "kill -9 $PPID", "kill -9 $PPID; sleep 60"])
def test_a_job_that_fails_or_is_killed_leaves_none(task: Any, it: Job, script: str) -> None:
    with pytest.raises(SlurmJobFailed):
        task.run(it.operator(script, resources=NO_REQUEUE))
    assert it.keys() == [KEY] and it.secrets() == []


def test_a_job_that_a_user_cancels_leaves_none(task: Any, it: Job, slurm: Any) -> None:
    trigger = task.start(it.operator())

    def cancel() -> None:
        it.until_it_runs()
        assert it.secrets()
        slurm.run("ctl", ["scancel", trigger.job_id])

    assert slurm_state(followed(trigger, cancel)) == "CANCELLED"
    assert it.secrets() == []


def test_a_job_that_loses_its_node_leaves_none(task: Any, it: Job, slurm: Any) -> None:
    trigger = task.start(it.operator(resources=NO_REQUEUE))

    def power_off() -> None:
        it.until_it_runs()
        causes.power_off(slurm, trigger.job_id)

    try:
        assert slurm_state(followed(trigger, power_off)) == "NODE_FAIL"
    finally:
        causes.power_on_all(slurm)
    assert it.secrets() == []


def test_a_job_that_slurm_runs_again_has_its_secrets_again_and_leaves_none_then(
    task: Any, it: Job, slurm: Any
) -> None:
    trigger = task.start(it.operator('[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || sleep 60'))

    def requeue() -> None:
        it.until_it_runs()
        slurm.run("ctl", ["scontrol", "requeue", trigger.job_id])
        until(lambda: "PENDING" in states(slurm, trigger.job_id))
        assert it.secrets()
        # Slurm starts it when its old credential has expired (cred_expire). Earlier, slurmd refuses the launch.

    assert slurm_state(followed(trigger, requeue)) == "COMPLETED"
    assert it.keys() == [KEY, KEY] and it.secrets() == []


def states(slurm: Any, job_id: str) -> str:
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    return slurm.run("login", ask, user="svc").stdout.strip()


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_marked_task_leaves_none(task: Any, it: Job, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """The state in Airflow's API is a stand-in, because the API needs a supervisor."""
    trigger = task.start(it.operator())
    it.until_it_runs()

    async def task_state(trigger: Any) -> str:
        return state

    monkeypatch.setattr("llm_bridge.triggers.base.task_state", task_state)
    asyncio.run(trigger.on_kill())
    assert it.secrets() == []


def test_a_task_marked_before_it_defers_leaves_none(
    task: Any, it: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state in Airflow's API is a stand-in, because the API needs a supervisor."""
    monkeypatch.setattr("llm_bridge.operators.base.state_of_task", lambda ti: "failed")
    operator = it.operator()
    operator.wait = False
    operator.execute(task.context)
    operator.on_kill()
    assert it.secrets() == []


def test_the_tasks_own_time_limit_leaves_none(task: Any, it: Job) -> None:
    trigger = task.start(it.operator())
    it.until_it_runs()
    trigger.deadline = time.time() - 1
    asyncio.run(anext(trigger.run()))
    assert it.secrets() == []


def test_a_cleared_task_keeps_those_of_its_new_job(task: Any, it: Job, slurm: Any) -> None:
    task.start(it.operator())
    it.until_it_runs()
    task.clear()
    trigger = task.start(it.operator())
    assert it.secrets() == [f"{trigger.directory}/secrets"]
    slurm.run("ctl", ["scancel", trigger.job_id])


def test_a_retry_removes_those_of_a_job_that_was_killed_while_nothing_followed_it(
    task: Any, it: Job, slurm: Any
) -> None:
    trigger = task.start(it.operator())
    it.until_it_runs()
    slurm.run("ctl", ["scancel", trigger.job_id])
    until(lambda: states(slurm, trigger.job_id) == "CANCELLED")
    task.retry()
    second = task.start(it.operator())
    assert second.job_id != trigger.job_id
    assert it.secrets() == [f"{second.directory}/secrets"]
    slurm.run("ctl", ["scancel", second.job_id])


def test_a_teardown_leaves_none(task: Any, it: Job) -> None:
    task.start(it.operator())
    it.until_it_runs()
    SlurmCancelOperator(task_id="down", stage=lambda context: ("test", it.stage)).execute(task.context)
    assert it.secrets() == []


def test_the_sweep_of_orphans_leaves_none(task: Any, it: Job) -> None:
    """The run's state in Airflow is a stand-in, because Airflow's API needs a supervisor."""
    trigger = task.start(it.operator())
    task.ti.get_dagrun_state = lambda dag_id, run_id: DagRunState(
        "failed" if run_id == task.ti.run_id else "running"
    )
    for _ in range(2):
        found = ReapOrphansOperator(task_id="reap", cluster="test").execute(task.context)
    assert found["cancelled"] == [trigger.job_id]
    assert it.secrets() == []


def test_a_job_that_slurm_refuses_leaves_none(task: Any, it: Job) -> None:
    with pytest.raises(ConfigError, match="invalid partition"):
        it.operator(resources=Resources(partition="nope")).execute(task.context)
    assert it.secrets() == []


def test_a_followup_job_of_a_job_that_fails_leaves_none(task: Any, it: Job) -> None:
    followup = it.job("true", directory=f"{it.stage}/followup")
    with pytest.raises(SlurmJobFailed):
        task.run(it.operator("sleep 2; exit 3", followed_by=followup))
    assert task.xcoms[FOLLOWUP_XCOM] and it.secrets() == []


def test_an_invalid_key_is_refused_before_anything_is_submitted(
    task: Any, it: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WANDB_TEST", f'{{"conn_type": "generic", "password": "{KEY} {KEY}"}}')
    with pytest.raises(ConfigError, match="connection 'wandb_test'") as error:
        it.operator().execute(task.context)
    assert KEY not in str(error.value) and it.secrets() == []


@pytest.fixture
def ray_cluster(it: Job) -> SlurmJob:
    resources = Resources(nodes=1, gpus_per_node=1, cpus_per_task=4)
    return it.job(template="ray_cluster", settings=SETTINGS, resources=resources)


def test_a_ray_cluster_that_is_cancelled_after_its_jobs_leaves_none(
    new_task: Any, it: Job, ray_cluster: SlurmJob
) -> None:
    """The normal end of PPO."""
    task = new_task("secrets-green")
    down = functools.partial(
        SlurmCancelOperator(task_id="down", stage=lambda context: ("test", it.stage)).execute, task.context
    )
    try:
        up = task.run(RayClusterOperator(task_id="up", job=ray_cluster))
        assert it.secrets()
        job = RayJob(
            entrypoint=["bash", "-c", "echo $WANDB_API_KEY > $1", "-", f"{it.stage}/keys"], directory=it.stage
        )
        submitted = RaySubmitJobOperator(task_id="submit", ray=up, job=job).execute(task.context)
        task.run(RayJobSensor(task_id="wait", submitted=submitted))
    finally:
        down()
    assert it.keys() == [KEY] and it.secrets() == []


def test_a_ray_cluster_that_ends_before_its_job_leaves_none_even_without_a_teardown(
    new_task: Any, it: Job, ray_cluster: SlurmJob, slurm: Any
) -> None:
    task = new_task("secrets-lost")
    up = task.run(RayClusterOperator(task_id="up", job=ray_cluster))
    job = RayJob(entrypoint=["sleep", "600"], directory=it.stage)
    submitted = RaySubmitJobOperator(task_id="submit", ray=up, job=job).execute(task.context)
    trigger = task.start(RayJobSensor(task_id="wait", submitted=submitted))

    def cancel() -> None:
        time.sleep(5)
        slurm.run("ctl", ["scancel", up["job_id"]])

    assert RayJobEvent.from_json(followed(trigger, cancel)).end is RayEndReason.ALLOCATION_ENDED
    assert it.secrets() == []
