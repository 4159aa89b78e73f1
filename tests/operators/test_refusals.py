"""Real refusals of Slurm: never, or not now."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.exceptions import ConfigError, NotAcceptedYet
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.pipeline.check import CheckOperator
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.spec import Resources, SlurmJob
from llm_bridge.triggers.reachability import ClusterReachableTrigger
from testing.site import ssh_connection
from testing.waiting import until


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


def test_a_run_goes_to_the_cluster_that_can_start_it_first_and_stays_there(
    task: Any,
    slurm: Any,
    site: dict[str, Any],
    include: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One cluster does not answer; on another one, SFT needs a node that a job holds for an hour."""
    folder = tmp_path / "include"
    shutil.copytree(include, folder)
    for name, changes in {"gone": {"ssh_conn_id": "gone"}, "full": {"nodelist": "n[1-2]"}}.items():
        (folder / "clusters" / f"{name}.yaml").write_text(yaml.safe_dump(site | changes))
    recipe = yaml.safe_load((folder / "recipes" / "tiny_cpu.yaml").read_text())
    recipe |= {"cluster": None, "clusters": ["gone", "full", "test"], "stages": ["prepare", "sft"]}
    (folder / "recipes" / "several.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(folder))
    monkeypatch.setenv("AIRFLOW_CONN_GONE", json.dumps(ssh_connection(slurm) | {"port": 1}))
    context = task.context | {"params": {"recipe": "several"}}
    holds = ["sbatch", "--parsable", "-w", "n1", "--exclusive", "-t", "60", "--wrap", "sleep 3600"]
    job = slurm.run("login", holds, user="svc").stdout.strip()
    # Its only node is that of the job.
    made = slurm.run("ctl", ["scontrol", "create", "partitionname=busy", "nodes=n1", "maxtime=INFINITE"])
    assert made.returncode == 0, made.stderr
    try:
        state = ["squeue", "-h", "-o", "%T", "-j", job]
        until(lambda: slurm.run("login", state, user="svc").stdout.strip() == "RUNNING", what="the job on n1")
        first = CheckOperator(task_id="check").execute(context)
        assert _starts_in(site, "busy") > 600 and _starts_in(site, f"busy,{site['partition']}") < 600
    finally:
        slurm.run("login", ["scancel", job], user="svc")
        slurm.run("ctl", ["scontrol", "delete", "partitionname=busy"])
    why = first["cluster_choice"]
    assert first["cluster"] == "test", why
    assert "the largest job can start on test now; gone was skipped: " in why and "; full in " in why
    task.clear()
    assert CheckOperator(task_id="check").execute(context) == first


def _starts_in(site: dict[str, Any], partition: str) -> float:
    """Return Slurm's estimate of the seconds until a job can start."""

    async def once() -> float | None:
        async with open_client("test") as client:
            job = SlurmJob(
                cluster="test",
                directory=f"{site['workspace']}/refusals",
                script="#!/bin/bash\ntrue\n",
                resources=Resources(partition=partition),
            )
            return (await client.estimate_start(job.resolve(client.cluster))).seconds

    found = asyncio.run(once())
    assert found is not None
    return found
