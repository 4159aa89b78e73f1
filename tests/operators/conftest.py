"""A real Slurm cluster for the operators, and an include/ folder with the cluster file ``test.yaml``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.host_session import IDLE_VARIABLE
from testing.local_cluster import LocalCluster
from testing.site import Site, ssh_connection
from testing.task_context import Task, events_at_once


@pytest.fixture(scope="session")
def slurm() -> Iterator[LocalCluster]:
    """Four nodes with eight simulated GPUs each, a login node with sshd, accounting; one per pytest-xdist worker."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cluster = LocalCluster(f"optest{worker}", ssh_port=22422 + worker)
    cluster.down(wipe=True)
    cluster.up()
    yield cluster
    cluster.down(wipe=True)


@pytest.fixture(scope="session")
def connection(slurm: LocalCluster) -> dict[str, Any]:
    """An Airflow connection to the login node, as its JSON form."""
    return ssh_connection(slurm)


@pytest.fixture(scope="session", autouse=True)
def described(slurm: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An include/ folder with a file for that cluster, and the connection that the file names."""
    site = Site(slurm, tmp_path_factory.mktemp("slurm"), "test", hub={})
    with pytest.MonkeyPatch.context() as patch, events_at_once():
        for name, value in site.environment.items():
            patch.setenv(name, value)
        patch.setenv(IDLE_VARIABLE, "5")  # nothing of a test runs for long after it
        yield site


@pytest.fixture(scope="session")
def site(described: Site) -> dict[str, Any]:
    """Content of the test cluster's file."""
    return described.values


@pytest.fixture(scope="session")
def include(described: Site) -> Path:
    return described.include


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    """One task per test, so that no two tests share a directory or a job name."""
    return Task("t", run_id=request.node.name)


@pytest.fixture(scope="session")
def new_task() -> Callable[[str], Task]:
    """Make further tasks."""
    return lambda run_id: Task("t", run_id=run_id)


@pytest.fixture
def jobs(slurm: LocalCluster) -> Any:
    """Find the ids of all jobs whose name contains a text, in slurmctld."""

    def find(text: str) -> list[str]:
        done = slurm.run("login", ["squeue", "-h", "-t", "all", "-o", "%i %j %r"], user="svc")
        rows = [line.split() for line in done.stdout.splitlines()]
        # slurmctld keeps a record of a job that it refused.
        return [row[0] for row in rows if text in row[1] and row[2] != "BadConstraints"]

    return find


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Messages logged since the last call: first those of operators and triggers, then those of all other modules.

    Airflow's loggers of operators and triggers print "TIME [level] message [logger]"; the others are Python's own.
    """

    def read() -> list[str]:
        printed = re.findall(r"^\S+Z \[\w+ *\] (.*?) *\[[\w.]+\]", capsys.readouterr().out, re.MULTILINE)
        recorded = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [*printed, *recorded]

    return read
