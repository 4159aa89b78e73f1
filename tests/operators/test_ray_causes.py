"""The failure of a Ray job names the real cause when its cluster ends; each test has a cluster of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_bridge.operators.exceptions import RayJobFailed
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.ray.spec import RayJob
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.slurm.cancellation import cancel_and_wait
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing.small_ray import SETTINGS

Fault = Callable[[str], Any]


@pytest.fixture
def lose(slurm: Any, new_task: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Run a Ray job on a cluster of its own, damage that, and return the error of the waiting task."""
    ids: list[str] = []

    def run(nodes: list[str], fault: Fault, **options: Any) -> str:
        name = request.node.name[:50]
        task = new_task(name)
        slurm.wait_for_nodes(nodes, timeout=120)
        cluster = SlurmJob(
            cluster="test",
            template="ray_cluster",
            settings={**SETTINGS, "nodes": len(nodes)},
            resources=Resources(
                nodes=len(nodes),
                gpus_per_node=1,
                cpus_per_task=4,
                nodelist=",".join(nodes),
                options={"no-requeue": None} | options,
            ),
            directory=f"{slurm.workspace}/{name}",
        )
        up = task.run(RayClusterOperator(task_id="up", job=cluster))
        ids.append(up["job_id"])
        sleep = RayJob(entrypoint=["sleep", "600"])
        submitted = RaySubmitJobOperator(task_id="submit", ray=up, job=sleep).execute(task.context)
        sensor = RayJobSensor(task_id="wait", submitted=submitted)
        trigger = task.start(sensor)

        async def with_fault() -> Any:
            outcome = asyncio.create_task(trigger.outcome())
            await asyncio.sleep(3)
            await asyncio.to_thread(fault, up["job_id"])
            return await outcome

        event = asyncio.run(with_fault())
        with pytest.raises(RayJobFailed) as error:
            sensor.execute_complete(task.context, event)
        print(error.value)
        return str(error.value)

    yield run
    asyncio.run(cancel_and_wait("test", ids))


def test_the_error_names_the_user_that_cancelled_the_cluster(lose: Any, slurm: Any) -> None:
    error = lose(["n1"], lambda job_id: slurm.run("login", ["scancel", job_id], user="svc"))
    assert "lost its cluster: Slurm job" in error and "was cancelled: CANCELLED" in error
    assert "by user svc (uid " in error


def test_the_error_names_a_lost_node_that_the_head_guard_ran_on(lose: Any, slurm: Any) -> None:
    """No program on the nodes can report the cause: the head's node, and with it the batch script, is off."""
    try:
        error = lose(["n3", "n4"], lambda job_id: slurm.power_off("n3"))
    finally:
        slurm.power_on("n3")
    assert "lost a node: NODE_FAIL" in error
    assert "(n3 is down" in error and "n4 is" not in error


def test_the_error_of_a_cluster_that_reached_its_time_limit_says_so(lose: Any, slurm: Any) -> None:
    def time_is_up(job_id: str) -> None:
        slurm.run("ctl", ["scontrol", "update", f"jobid={job_id}", "EndTime=now"])

    assert "ran into its time limit: TIMEOUT" in lose(["n1"], time_is_up)


def test_the_error_of_a_killed_head_has_rays_own_message(lose: Any, slurm: Any) -> None:
    """The kernel kills a process in this way when a node runs out of memory."""

    def kill_gcs(job_id: str) -> None:
        assert slurm.run("n1", ["pkill", "-KILL", "-f", "gcs_server"]).returncode == 0

    error = lose(["n1", "n2"], kill_gcs)
    assert (
        "The job's own reason: n1: Ray ended with exit code" in error and "gcs_server [exit code=-9]" in error
    )
