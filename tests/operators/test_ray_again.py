"""A Ray job that failed, or whose cluster is gone, is brought back by the task that waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from benchmarks.failures_report.causes import preempt
from llm_bridge.failures.errors import RayJobFailed
from llm_bridge.ray.away import DashboardReachableTrigger
from llm_bridge.ray.job import RayJob
from llm_bridge.ray.operators import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.ray.sensors import RayJobSensor
from llm_bridge.slurm.cancel import cancel_and_wait
from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.teardown import SlurmCancelOperator
from tests.operators.small_ray import SETTINGS


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
    """What RayClusterOperator returned; the tests below end this cluster in the middle of the file."""
    task = new_task("again-up")
    yield task.run(RayClusterOperator(task_id="up", job=cluster_job))
    down = SlurmCancelOperator(task_id="down", stage=lambda context: ("test", stage, f"{stage}/again"))
    down.execute(task.context)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm on this machine names a lost cluster within seconds."""
    monkeypatch.setattr("llm_bridge.ray.by_files.CAUSE_SECONDS", 3.0)


def python(code: str, stage: str) -> RayJob:
    return RayJob(entrypoint=["python3", "-c", code], directory=stage)


def submit(task: Any, ray: dict[str, Any], job: RayJob) -> dict[str, Any]:
    return RaySubmitJobOperator(task_id="submit", ray=ray, job=job).execute(task.context)


def sensor(submitted: dict[str, Any], job: RayJob, cluster_job: SlurmJob) -> RayJobSensor:
    return RayJobSensor(task_id="wait", submitted=submitted, job=job, ray_cluster=cluster_job)


def test_a_dashboard_that_is_away_is_waited_for_without_a_retry_and_then_gets_one_job(
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


def test_a_retry_follows_a_job_that_goes_on_and_submits_the_next_where_it_failed(
    new_task: Any, ray: dict[str, Any], stage: str, cluster_job: SlurmJob, logged: Any
) -> None:
    submitter, task = new_task("again-submit"), new_task("again-wait")
    bad = python("import time; time.sleep(3); print('first'); raise SystemExit(3)", stage)
    submitted = submit(submitter, ray, bad)
    wait = sensor(submitted, python("print('second')", stage), cluster_job)
    task.retry()  # a worker died: the job itself is well
    assert task.start(wait).submission_id == submitted["submission_id"]
    with pytest.raises(
        RayJobFailed, match=r"driver_exit_code 3(.|\n)*\| first(.|\n)*How: a retry(.|\n)*unknown"
    ):
        task.run(wait)
    task.retry()
    done = task.run(wait)
    assert done["submission_id"] != submitted["submission_id"]
    assert "second" in logged()
    task.retry()  # and one that has ended well is not run again
    assert task.run(wait) == done


def test_a_cluster_that_slurm_starts_anew_is_waited_for_and_gets_the_next_job(
    new_task: Any, ray: dict[str, Any], slurm: Any, stage: str, cluster_job: SlurmJob
) -> None:
    """As after a preemption or a lost node, where the site requeues jobs."""
    submitter, task = new_task("again-requeued"), new_task("again-requeued-wait")
    place = f"{stage}/requeued"
    submitted = submit(submitter, ray, python("import time; time.sleep(600)", place))
    wait = sensor(submitted, python("print('anew')", place), cluster_job)
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
    if isinstance(deferred.value.trigger, DashboardReachableTrigger):  # else it was up again already
        event = asyncio.run(anext(deferred.value.trigger.run())).payload
        with pytest.raises(TaskDeferred) as deferred:
            wait.execute_again(task.context, event)
    event = asyncio.run(deferred.value.trigger.outcome())
    assert wait.execute_complete(task.context, event)["status"] == "SUCCEEDED"
    assert "slurm_job" not in task.xcoms, "it ran on the cluster that was submitted to"


def test_a_cluster_that_is_preempted_for_good_is_replaced_within_the_same_try(
    new_task: Any, slurm: Any, stage: str, cluster_job: SlurmJob, logged: Any
) -> None:
    place = f"{stage}/preempted"
    # All GPUs of a node: so it is not the one on which the cluster of this file runs, which cannot be preempted.
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
    assert any("goes on from its beginning within this try" in line for line in logged())
    event = asyncio.run(deferred.value.trigger.outcome())
    with pytest.raises(TaskDeferred) as deferred:
        wait.cluster_ready(task.context, event)
    event = asyncio.run(deferred.value.trigger.outcome())
    assert wait.execute_complete(task.context, event)["status"] == "SUCCEEDED"
    assert task.xcoms["slurm_job"]["directory"] == f"{place}/again/attempt-1"


def test_a_submit_to_a_cluster_that_is_gone_submits_nothing_and_the_wait_brings_up_its_own(
    new_task: Any, ray: dict[str, Any], slurm: Any, stage: str, cluster_job: SlurmJob, logged: Any
) -> None:
    submitter, task = new_task("again-gone"), new_task("again-own")
    assert asyncio.run(cancel_and_wait("test", [ray["job_id"]])) == []
    place = f"{stage}/own"
    job = python("print('on a cluster of its own')", place)
    found = submitter.run(RaySubmitJobOperator(task_id="submit", ray=ray, job=job))
    assert found["submission_id"] is None
    wait = sensor(found, job, cluster_job.model_copy(update={"directory": place}))
    assert task.run(wait)["status"] == "SUCCEEDED"
    assert "on a cluster of its own" in logged()
    own = task.xcoms["slurm_job"]
    assert own["directory"] == f"{place}/again/attempt-1" and own["job_id"] != ray["job_id"]
    states = slurm.run("login", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", own["job_id"]], user="svc")
    assert states.stdout.strip() == "CANCELLED"


def test_a_clear_ends_the_own_cluster_before_the_next_and_so_does_marking_the_task(
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
    task.retry()  # a worker or a whole Airflow died: cluster and job go on
    again = task.until(wait, "execute_complete")
    assert (again.target, again.submission_id) == (first.target, first.submission_id)
    task.clear()
    second = task.until(wait, "execute_complete")
    assert second.directory == f"{place}/ray-again-2" and second.submission_id != first.submission_id
    assert second.target["directory"] == f"{place}/again/attempt-2"
    state = lambda job_id: slurm.run(  # noqa: E731
        "login", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id], user="svc"
    ).stdout.strip()
    assert (state(first.target["job_id"]), state(second.target["job_id"])) == ("CANCELLED", "RUNNING")

    async def told(trigger: Any) -> str:
        return said

    monkeypatch.setattr("llm_bridge.ray.triggers.task_state", told)
    said = "deferred"  # the trigger moves to another triggerer
    asyncio.run(second.on_kill())
    assert state(second.target["job_id"]) == "RUNNING"
    said = "failed"
    asyncio.run(second.on_kill())
    assert state(second.target["job_id"]) == "CANCELLED"
    outcome = slurm.run("login", ["cat", f"{place}/again/attempt-2/outcome.json"], user="svc").stdout
    assert json.loads(outcome)["exit_code"] != 0
