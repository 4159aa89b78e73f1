"""Preflight on real nodes: a Ray cluster does not start on a node where it would fail later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from testing.local_cluster import LocalCluster
from testing.ray_job import RayJob

WANTED = {
    "gpus_per_node": 8,
    "device": "cpu",
    "ray": True,
    "temp_dir": "/mnt",
    "min_free_gib": 0.1,
    "max_clock_skew_seconds": 5,
    "all_reduce_seconds": 60,
}
CLOCK = """
import socket, time
real = time.time
if socket.gethostname() == "n2":
    time.time = lambda: real() + 30
"""


@pytest.fixture
def submit(slurm: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Callable[..., RayJob]]:
    """Submit a Ray cluster with preflight."""
    jobs: list[RayJob] = []

    def start(nodes: list[str], variables: dict[str, str] | None = None, **wanted: Any) -> RayJob:
        settings = {"preflight": WANTED | wanted, "variables": variables}
        jobs.append(RayJob(slurm, f"{request.node.name[:60]}-{len(jobs)}", nodes, **settings).submit())
        return jobs[-1]

    slurm.wait_for_nodes(timeout=120)
    yield start
    for job in jobs:
        job.cancel()


def test_the_cluster_starts_on_nodes_that_pass_and_the_log_says_so(submit: Any) -> None:
    job = submit(["n1", "n2"])
    job.wait_ready()
    assert "gloo all-reduce over 2 nodes" in job.log and "2 node(s) in order" in job.log
    assert job.log.index("in order") < job.log.index("head on n1")


def test_a_node_with_a_full_disk_is_named_before_anything_starts(submit: Any, slurm: LocalCluster) -> None:
    small = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    assert slurm.run("n2", small).returncode == 0
    try:
        job = submit(["n1", "n2"])
        job.wait_over(60)
    finally:
        slurm.run("n2", ["umount", "/mnt"])
    reason = job.json(attempt_dir.REASON)
    assert reason["nodes"] == ["n2"] and "n2: /mnt has 0.0 GiB left" in reason["reason"]
    assert job.json(attempt_dir.OUTCOME)["exit_code"] == 1 and "[ray]" not in job.log


def test_a_node_whose_clock_is_wrong_is_named(submit: Any, slurm: LocalCluster) -> None:
    """All hosts here share one kernel and its clock, so only Python's clock on n2 is changed."""
    folder = slurm.workspace / "clock"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CLOCK)
    job = submit(["n1", "n2"], {"PYTHONPATH": str(folder)})
    job.wait_over(60)
    reason = job.json(attempt_dir.REASON)
    assert reason["nodes"] == ["n2"] and "n2: its clock is 30.0 s off the file server's" in reason["reason"]
