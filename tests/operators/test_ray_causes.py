"""A Ray job's failure names the real cause when its cluster ends: each for real, on clusters of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_bridge.failures.errors import RayJobFailed
from llm_bridge.ray.job import RayJob
from llm_bridge.ray.operators import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.ray.sensors import RayJobSensor
from llm_bridge.slurm.cancel import cancel_and_wait
from llm_bridge.slurm.job import Resources, SlurmJob
from tests.operators.small_ray import SETTINGS

Fault = Callable[[str], Any]


@pytest.fixture
def lose(slurm: Any, new_task: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Run a Ray job on a cluster of its own, do something to that, and give what the waiting task says."""
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


def test_who_cancelled_the_cluster_is_told(lose: Any, slurm: Any) -> None:
    told = lose(["n1"], lambda job_id: slurm.run("login", ["scancel", job_id], user="svc"))
    assert "lost its cluster: Slurm job" in told and "was cancelled: CANCELLED" in told
    assert "by user svc (uid " in told


def test_a_node_that_is_lost_with_the_guard_on_it_is_named(lose: Any, slurm: Any) -> None:
    """Nobody is left on the nodes to say why: the head's node, and the batch script, are gone."""
    try:
        told = lose(["n3", "n4"], lambda job_id: slurm.power_off("n3"))
    finally:
        slurm.power_on("n3")
    assert "lost a node: NODE_FAIL" in told
    assert "(n3 is down" in told and "n4 is" not in told


def test_a_cluster_that_ran_into_its_time_limit_is_told_as_that(lose: Any, slurm: Any) -> None:
    def time_is_up(job_id: str) -> None:
        slurm.run("ctl", ["scontrol", "update", f"jobid={job_id}", "EndTime=now"])

    assert "ran into its time limit: TIMEOUT" in lose(["n1"], time_is_up)


def test_a_head_that_was_killed_is_told_in_rays_own_words(lose: Any, slurm: Any) -> None:
    """As the kernel does when a node's memory is used up."""

    def kill_gcs(job_id: str) -> None:
        assert slurm.run("n1", ["pkill", "-KILL", "-f", "gcs_server"]).returncode == 0

    told = lose(["n1", "n2"], kill_gcs)
    assert "It says: n1: Ray ended with exit code" in told and "gcs_server [exit code=-9]" in told
