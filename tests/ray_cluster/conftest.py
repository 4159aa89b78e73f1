"""The modules under include/jobs, and Ray clusters on a Slurm cluster of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As on the cluster, where these files lie side by side.
sys.path[:0] = [str(ROOT / "include" / "jobs"), str(Path(__file__).parent)]


@pytest.fixture(scope="session")
def slurm() -> Iterator[object]:
    """Three nodes with eight pretend GPUs each."""
    from local_cluster import LocalCluster

    cluster = LocalCluster("raytest", ssh_port=22222, nodes=3, accounting=False)
    cluster.down(wipe=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down(wipe=True)
