"""Real refusals of Slurm: never, or not now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llm_bridge.exceptions import ConfigError, NotAcceptedYet
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.spec import Resources, SlurmJob
from llm_bridge.triggers.reachability import ClusterReachableTrigger


def check(site: dict[str, Any], nodes: int) -> str:
    """Run ``sbatch --test-only`` for a job on so many nodes."""

    async def once() -> str:
        async with open_client("test") as client:
            job = SlurmJob(
                cluster="test",
                directory=f"{site['workspace']}/refusals",
                script="#!/bin/bash\ntrue\n",
                resources=Resources(nodes=nodes, gpus_per_node=1),
            )
            return await client.test_only(job.resolve(client.cluster))

    return asyncio.run(once())


@contextmanager
def changed(slurm: Any, entity: str, state: str, back: str) -> Iterator[None]:
    """Change a node's or partition's state for a while."""
    reason = ["reason=bad fan"] if entity.startswith("nodename") else []
    done = slurm.run("ctl", ["scontrol", "update", entity, f"state={state}", *reason])
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        slurm.run("ctl", ["scontrol", "update", entity, f"state={back}"])
        slurm.wait_for_nodes()


def test_a_drained_node_is_no_reason_to_refuse_a_job_for_ever(slurm: Any, site: dict[str, Any]) -> None:
    with changed(slurm, "nodename=n4", "drain", "resume"):
        with pytest.raises(NotAcceptedYet, match=r"n4 \(drain, bad fan\)"):
            check(site, nodes=4)
        check(site, nodes=3)
    check(site, nodes=4)
    with pytest.raises(ConfigError):
        check(site, nodes=9)


def test_a_task_waits_for_a_drained_partition_and_then_submits_one_job(
    task: Any, slurm: Any, site: dict[str, Any], jobs: Any, logged: Any
) -> None:
    def submit() -> SlurmSubmitOperator:
        return SlurmSubmitOperator(task_id="t", cluster="test", script="#!/bin/bash\ntrue\n")

    with changed(slurm, f"partitionname={site['partition']}", "drain", "up"):
        trigger = task.start(submit())
        assert isinstance(trigger, ClusterReachableTrigger) and trigger.pause > 0
        assert any("waiting for the partition to be in service" in line for line in logged())
    done = task.run(submit())
    assert jobs(task.store["llm_bridge_attempt"]["key"]) == [done["job_id"]]
