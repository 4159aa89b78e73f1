"""A real Slurm cluster for the operators, and an include/ folder that names it ``test``."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import TaskDeferred

from local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def slurm() -> Iterator[LocalCluster]:
    """Four nodes with eight pretend GPUs each, a login node with sshd, accounting; one a worker of pytest-xdist."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cluster = LocalCluster(f"optest{worker}", ssh_port=22422 + worker)
    cluster.down(wipe=True)
    cluster.up()
    yield cluster
    cluster.down(wipe=True)


@pytest.fixture(scope="session")
def ssh_connection(slurm: LocalCluster) -> dict[str, Any]:
    """An Airflow connection to the login node, as its JSON form."""
    extra = {"key_file": str(slurm.ssh_key), "known_hosts": str(slurm.known_hosts)}
    return {"conn_type": "ssh", "host": "127.0.0.1", "port": slurm.ssh_port, "login": "svc", "extra": extra}


@pytest.fixture(scope="session")
def site(slurm: LocalCluster) -> dict[str, Any]:
    """The test cluster's cluster file."""
    settings = yaml.safe_load((ROOT / "include" / "clusters" / "local.yaml").read_text())
    return settings | {"ssh_conn_id": "slurm_test", "workspace": str(slurm.workspace), "hub": {}}


@pytest.fixture(scope="session", autouse=True)
def include(
    site: dict[str, Any], ssh_connection: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """include/ with that cluster file, and the connection that it names."""
    folder = tmp_path_factory.mktemp("slurm") / "include"
    shutil.copytree(ROOT / "include", folder)
    (folder / "clusters" / "test.yaml").write_text(yaml.safe_dump(site))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_BRIDGE_INCLUDE", str(folder))
        patch.setenv("AIRFLOW_CONN_SLURM_TEST", json.dumps(ssh_connection))
        yield folder


class Store:
    """Stands for Airflow's ``task_state_store``, which needs a supervisor; tests/e2e uses the real one."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = json.loads(json.dumps(value))
        assert self.values[key] == value, "the real store takes JSON values only"


class Task:
    """One task instance that may be tried, retried and cleared: the parts of the context that operators read."""

    def __init__(self, task_id: str, run_id: str = "run") -> None:
        self.store = Store()
        self.clear_number = 0
        self.xcoms: dict[str, Any] = {}
        self.ti = SimpleNamespace(
            dag_id="tests",
            run_id=run_id,
            task_id=task_id,
            map_index=-1,
            max_tries=2,
            try_number=1,
            xcom_push=lambda key, value: self.xcoms.__setitem__(key, value),
        )

    def clear(self) -> None:
        """What the user's clear does to run and task instance (airflow.models.taskinstance.clear_task_instances)."""
        self.clear_number += 1
        self.ti.max_tries += 1
        self.ti.try_number += 1

    def retry(self) -> None:
        """The next try begins."""
        self.ti.try_number += 1

    @property
    def context(self) -> Any:
        run = SimpleNamespace(clear_number=self.clear_number)
        return {"ti": self.ti, "dag_run": run, "task_state_store": self.store}

    def start(self, operator: Any) -> Any:
        """Execute up to the deferral; returns the trigger."""
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(self.context)
        return deferred.value.trigger

    def run(self, operator: Any) -> Any:
        """Execute to the end, the triggers included."""
        return self._through(operator, None)

    def until(self, operator: Any, method: str) -> Any:
        """Execute up to the deferral that ``method`` goes on from; returns its trigger."""
        return self._through(operator, method)

    def _through(self, operator: Any, last: str | None) -> Any:
        step = functools.partial(operator.execute, self.context)
        while True:
            try:
                return step()
            except TaskDeferred as deferred:
                if deferred.method_name == last:
                    return deferred.trigger
                event = asyncio.run(deferred.trigger.outcome())
                step = functools.partial(getattr(operator, deferred.method_name), self.context, event)


@pytest.fixture
def task(request: pytest.FixtureRequest) -> Task:
    """A task of its own for every test, so that no two tests share a directory or a job name."""
    return Task("t", run_id=request.node.name)


@pytest.fixture(scope="session")
def new_task() -> Callable[[str], Task]:
    """More tasks than one."""
    return lambda run_id: Task("t", run_id=run_id)


@pytest.fixture
def jobs(slurm: LocalCluster) -> Any:
    """The ids of all jobs whose name holds a text, as slurmctld knows them."""

    def find(text: str) -> list[str]:
        done = slurm.run("login", ["squeue", "-h", "-t", "all", "-o", "%i %j %r"], user="svc")
        rows = [line.split() for line in done.stdout.splitlines()]
        # slurmctld keeps a record of a job that it refused.
        return [row[0] for row in rows if text in row[1] and row[2] != "BadConstraints"]

    return find


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What was logged so far; Airflow's loggers print "TIME [level] message [logger]"."""
    return lambda: re.findall(r"^\S+Z \[\w+ *\] (.*?) *\[[\w.]+\]", capsys.readouterr().out, re.MULTILINE)
