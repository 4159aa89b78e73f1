"""A Slurm cluster on this machine for Ray clusters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def slurm() -> Iterator[object]:
    """Three nodes with eight simulated GPUs each."""
    from testing.local_cluster import LocalCluster

    cluster = LocalCluster("raytest", ssh_port=22222, nodes=3, accounting=False)
    cluster.down(wipe=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down(wipe=True)
