"""A cluster of its own for these tests, so that they disturb no other."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from testing.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Four nodes with accounting, started once for all tests; every test leaves it healthy."""
    cluster = LocalCluster("lctest", ssh_port=22122)
    cluster.down(wipe=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down(wipe=True)


Ssh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def ssh(cluster: LocalCluster) -> Ssh:
    """Run one shell command on the login host, as Airflow's user reaches it."""

    def run(command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={cluster.known_hosts}"]
        argv += ["-i", str(cluster.ssh_key), "-p", str(cluster.ssh_port), "svc@127.0.0.1", command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.returncode} {done.stdout} {done.stderr}"
        return done

    return run
