"""A real Slurm cluster for the operators, and an include/ folder that names it ``test``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def slurm() -> Iterator[LocalCluster]:
    """Four nodes with eight pretend GPUs each, a login node with sshd, accounting."""
    cluster = LocalCluster("optest", ssh_port=22422)
    cluster.down()
    cluster.up()
    yield cluster
    cluster.down(wipe=True)


@pytest.fixture(scope="session")
def ssh_connection(slurm: LocalCluster) -> dict[str, Any]:
    """An Airflow connection to the login node, as its JSON form."""
    extra = {"key_file": str(slurm.ssh_key), "known_hosts": str(slurm.known_hosts)}
    return {"conn_type": "ssh", "host": "127.0.0.1", "port": slurm.ssh_port, "login": "svc", "extra": extra}


@pytest.fixture(scope="session", autouse=True)
def include(slurm: LocalCluster, ssh_connection: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """include/ with a cluster file for the test cluster, and the connection that it names."""
    folder = tmp_path_factory.mktemp("slurm") / "include"
    shutil.copytree(ROOT / "include", folder)
    settings = yaml.safe_load((folder / "clusters" / "local.yaml").read_text())
    settings |= {"ssh_conn_id": "slurm_test", "workspace": str(slurm.workspace), "hub": {}}
    (folder / "clusters" / "test.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_BRIDGE_INCLUDE", str(folder))
        patch.setenv("AIRFLOW_CONN_SLURM_TEST", json.dumps(ssh_connection))
        yield folder


@pytest.fixture(scope="session")
def database() -> None:
    """Airflow's database, made once."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def run_dag(database: None) -> Callable[..., Any]:
    """Run a DAG in this process with ``dag.test`` and return its run."""

    def run(dag: Any, **options: Any) -> Any:
        from airflow.utils.session import create_session  # noqa: F401

        return dag.test(**options)

    return run


os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "False")
