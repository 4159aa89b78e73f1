"""A retry excludes a node that fails the preflight of a Ray cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.operators.ray import RayClusterOperator
from llm_bridge.slurm.cancellation import close_and_cancel
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing import small_ray

PREFLIGHT = {
    "gpus_per_node": 1,
    "device": "cpu",
    "ray": True,
    "temp_dir": "/mnt",
    "min_free_gib": 0.1,
    "max_clock_skew_seconds": 5,
    "all_reduce_seconds": 0,
}
SETTINGS = {**small_ray.SETTINGS, "nodes": 2, "preflight": PREFLIGHT}


def test_a_node_that_fails_the_preflight_is_named_and_the_retry_excludes_it(
    new_task: Any, slurm: Any, logged: Any
) -> None:
    stage = f"{slurm.workspace}/excluded"
    resources = Resources(nodes=2, gpus_per_node=1, cpus_per_task=4)
    job = SlurmJob(
        cluster="test", template="ray_cluster", settings=SETTINGS, resources=resources, directory=stage
    )
    task, up = new_task("excluded"), RayClusterOperator(task_id="up", job=job)

    def others(state: str) -> None:
        slurm.run("ctl", ["scontrol", "update", "NodeName=n3,n4", f"State={state}", "Reason=test"])

    slurm.wait_for_nodes(timeout=120)
    assert slurm.run("n2", ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]).returncode == 0
    others("DRAIN")
    try:
        with pytest.raises(SlurmJobFailed, match=r"preflight: n2: /mnt has 0.0 GiB left"):
            task.run(up)
    finally:
        others("RESUME")
    try:
        slurm.wait_for_nodes(timeout=60)
        task.retry()
        ready = task.run(up)
        assert "n2" not in [node["name"] for node in ready["result"]["nodes"]]
        assert any("excluding n2, which failed before" in line for line in logged())
    finally:
        slurm.run("n2", ["umount", "/mnt"])
        asyncio.run(close_and_cancel("test", stage))
