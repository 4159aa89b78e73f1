"""The waiting task submits a Ray job again that failed or whose cluster has ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from llm_bridge.operators.exceptions import RayJobFailed
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.operators.slurm import SlurmCancelOperator
from llm_bridge.ray.spec import RayJob
from llm_bridge.remote import attempt_dir
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.slurm.cancellation import cancel_and_wait
from llm_bridge.slurm.spec import Resources, SlurmJob
from llm_bridge.triggers.reachability import DashboardReachableTrigger
from testing.causes import preempt
from testing.small_ray import SETTINGS


@pytest.fixture(scope="module")
def stage(slurm: Any) -> str:
    return f"{slurm.workspace}/again-stage"


@pytest.fixture(scope="module")
def cluster_job(stage: str) -> SlurmJob:
    resources = Resources(nodes=1, gpus_per_node=1, cpus_per_task=4)
    return SlurmJob(
        cluster="test", template="ray_cluster", settings=SETTINGS, resources=resources, directory=stage
    )


@pytest.fixture(scope="module")
def ray(new_task: Any, stage: str, cluster_job: SlurmJob) -> Iterator[dict[str, Any]]:
    """Output of RayClusterOperator; a test in the middle of this file cancels the cluster."""
    task = new_task("again-up")
    yield task.run(RayClusterOperator(task_id="up", job=cluster_job))
    down = SlurmCancelOperator(
        task_id="down", stage=lambda context: ("test", stage, f"{stage}/{attempt_dir.RECOVERY}")
    )
    down.execute(task.context)


@pytest.fixture(autouse=True)
def short_wait_for_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm on this machine reports a lost cluster within seconds."""
    monkeypatch.setattr("llm_bridge.triggers.ray_from_files.CAUSE_SECONDS", 3.0)


def python(code: str, stage: str) -> RayJob:
    return RayJob(entrypoint=["python3", "-c", code], directory=stage)


def submit(task: Any, ray: dict[str, Any], job: RayJob) -> dict[str, Any]:
    return RaySubmitJobOperator(task_id="submit", ray=ray, job=job).execute(task.context)


def sensor(submitted: dict[str, Any], job: RayJob, cluster_job: SlurmJob) -> RayJobSensor:
    return RayJobSensor(task_id="wait", submitted=submitted, job=job, ray_cluster=cluster_job)


def test_a_task_waits_for_an_unreachable_dashboard_without_a_retry_and_then_submits_one_job(
    new_task: Any, ray: dict[str, Any], slurm: Any, stage: str
) -> None:
    task = new_task("again-away")
    address, hidden = f"{ray['directory']}/cluster.json", f"{ray['directory']}/hidden.json"
    operator = RaySubmitJobOperator(task_id="submit", ray=ray, job=python("print(1)", f"{stage}/away"))
    slurm.run("login", ["mv", address, hidden], user="svc")
    try:
        trigger = task.start(operator)
    finally:
        slurm.run("login", ["mv", hidden, address], user="svc")
    assert isinstance(trigger, DashboardReachableTrigger)
    event = asyncio.run(anext(trigger.run())).payload
    submitted = operator.execute_again(task.context, event)
    assert submitted["attempt_directory"] == f"{stage}/away/ray-1"


def test_a_retry_follows_a_job_that_still_runs_and_submits_the_next_after_a_failure(
    new_task: Any, ray: dict[str, Any], stage: str, cluster_job: SlurmJob, logged: Any
) -> None:
    submitter, task = new_task("again-submit"), new_task("again-wait")
    bad = python("import time; time.sleep(3); print('first'); raise SystemExit(3)", stage)
    submitted = submit(submitter, ray, bad)
    wait = sensor(submitted, python("print('second')", stage), cluster_job)
    task.retry()  # as after a worker's death: the job itself still runs
    assert task.start(wait).submission_id == submitted["submission_id"]
    with pytest.raises(
        RayJobFailed, match=r"driver_exit_code 3(.|\n)*\| first(.|\n)*Next: a retry(.|\n)*unknown"
    ):
        task.run(wait)
    task.retry()
    done = task.run(wait)
    assert done["submission_id"] != submitted["submission_id"]
    assert "second" in logged()
    task.retry()  # a job that has succeeded does not run again
    assert task.run(wait) == done


def test_the_next_job_is_submitted_to_a_cluster_that_slurm_has_requeued(
    new_task: Any, ray: dict[str, Any], slurm: Any, stage: str, cluster_job: SlurmJob
) -> None:
    """As after a preemption or a lost node, where the site requeues jobs."""
    submitter, task = new_task("again-requeued"), new_task("again-requeued-wait")
    place = f"{stage}/requeued"
    submitted = submit(submitter, ray, python("import time; time.sleep(600)", place))
    wait = sensor(submitted, python("print('again')", place), cluster_job)
    trigger = task.start(wait)

    async def with_requeue() -> Any:
        outcome = asyncio.create_task(trigger.outcome())
        await asyncio.sleep(6)
        await asyncio.to_thread(slurm.run, "ctl", ["scontrol", "requeue", ray["job_id"]])
        return await outcome

    event = asyncio.run(with_requeue())
    with pytest.raises(TaskDeferred) as deferred:  # within the same try
        wait.execute_complete(task.context, event)
    assert task.xcoms["diagnosis"]["kind"] == "preempted"
    if isinstance(deferred.value.trigger, DashboardReachableTrigger):  # else it was ready again already
        event = asyncio.run(anext(deferred.value.trigger.run())).payload
        with pytest.raises(TaskDeferred) as deferred:
            wait.execute_again(task.context, event)
    event = asyncio.run(deferred.value.trigger.outcome())
    assert wait.execute_complete(task.context, event)["status"] == "SUCCEEDED"
    assert "slurm_job" not in task.xcoms, "it ran on the cluster that was submitted to"


def test_a_cluster_that_is_preempted_and_not_requeued_is_replaced_within_the_same_try(
    new_task: Any, slurm: Any, stage: str, cluster_job: SlurmJob, logged: Any
) -> None:
    place = f"{stage}/preempted"
    # All GPUs of a node: not the node of this file's cluster, which cannot be preempted.
    low = cluster_job.resources.model_copy(update={"partition": "lowcancel", "gpus_per_node": 8})
    settings = {**SETTINGS, "gpus_per_node": 8}
    own = cluster_job.model_copy(update={"directory": place, "resources": low, "settings": settings})
    submitter, task = new_task("again-preempted"), new_task("again-preempted-wait")
    up = submitter.run(RayClusterOperator(task_id="up", job=own))
    job = python("print('the second')", place)
    submitted = submit(submitter, up, python("import time; time.sleep(600)", place))
    wait = sensor(submitted, job, own)
    trigger = task.start(wait)

    async def preempted() -> Any:
        outcome = asyncio.create_task(trigger.outcome())
        await asyncio.sleep(3)
        await asyncio.to_thread(preempt, slurm, up["job_id"])
        return await asyncio.wait_for(outcome, 60)

    event = asyncio.run(preempted())
    with pytest.raises(TaskDeferred) as deferred:
        wait.execute_complete(task.context, event)
    assert task.xcoms["diagnosis"]["kind"] == "preempted" and task.ti.try_number == 1
    assert any("starts again from its beginning within this try" in line for line in logged())
    event = asyncio.run(deferred.value.trigger.outcome())
    with pytest.raises(TaskDeferred) as deferred:
        wait.cluster_ready(task.context, event)
    event = asyncio.run(deferred.value.trigger.outcome())
    assert wait.execute_complete(task.context, event)["status"] == "SUCCEEDED"
    assert task.xcoms["slurm_job"]["directory"] == f"{place}/{attempt_dir.RECOVERY}/attempt-1"


def test_nothing_is_submitted_to_a_cluster_that_has_ended_and_the_waiting_task_starts_its_own(
    new_task: Any, ray: dict[str, Any], slurm: Any, stage: str, cluster_job: SlurmJob, logged: Any
) -> None:
    submitter, task = new_task("again-gone"), new_task("again-own")
    assert not asyncio.run(cancel_and_wait("test", [ray["job_id"]]))
    place = f"{stage}/own"
    job = python("print('on a cluster of its own')", place)
    found = submitter.run(RaySubmitJobOperator(task_id="submit", ray=ray, job=job))
    assert found["submission_id"] is None
    wait = sensor(found, job, cluster_job.model_copy(update={"directory": place}))
    assert task.run(wait)["status"] == "SUCCEEDED"
    assert "on a cluster of its own" in logged()
    own = task.xcoms["slurm_job"]
    assert own["directory"] == f"{place}/{attempt_dir.RECOVERY}/attempt-1" and own["job_id"] != ray["job_id"]
    states = slurm.run("login", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", own["job_id"]], user="svc")
    assert states.stdout.strip() == "CANCELLED"


def test_a_clear_or_a_mark_of_the_task_cancels_its_own_cluster(
    new_task: Any,
    ray: dict[str, Any],
    slurm: Any,
    stage: str,
    cluster_job: SlurmJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = new_task("again-clear")
    gone = {"submission_id": None, "attempt_directory": None, "python": None}
    target = {"cluster": "test", "job_id": ray["job_id"], "directory": ray["directory"]}
    place = f"{stage}/clear"
    wait = sensor(
        {**gone, **target},
        python("import time; print('up', flush=True); time.sleep(600)", place),
        cluster_job.model_copy(update={"directory": place}),
    )
    first = task.until(wait, "execute_complete")
    task.retry()  # as after the death of a worker or a whole Airflow: cluster and job still run
    again = task.until(wait, "execute_complete")
    assert (again.target, again.submission_id) == (first.target, first.submission_id)
    task.clear()
    second = task.until(wait, "execute_complete")
    assert (
        second.directory == f"{place}/{attempt_dir.RAY_RESUBMIT_PREFIX}2"
        and second.submission_id != first.submission_id
    )
    assert second.target["directory"] == f"{place}/{attempt_dir.RECOVERY}/attempt-2"
    state = lambda job_id: slurm.run(  # noqa: E731
        "login", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id], user="svc"
    ).stdout.strip()
    assert (state(first.target["job_id"]), state(second.target["job_id"])) == ("CANCELLED", "RUNNING")

    async def task_state(trigger: Any) -> str:
        return marked

    monkeypatch.setattr("llm_bridge.triggers.base.task_state", task_state)
    marked = "deferred"  # the trigger moves to another triggerer
    asyncio.run(second.on_kill())
    assert state(second.target["job_id"]) == "RUNNING"
    marked = "failed"
    asyncio.run(second.on_kill())
    assert state(second.target["job_id"]) == "CANCELLED"
    outcome = slurm.run(
        "login", ["cat", f"{place}/{attempt_dir.RECOVERY}/attempt-2/outcome.json"], user="svc"
    ).stdout
    assert json.loads(outcome)["exit_code"] != 0
