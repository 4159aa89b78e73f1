"""Airflow's configuration for a local cluster: ``include/`` with cluster files, and the SSH connection they name."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from testing import paths
from testing.local_cluster import LocalCluster
from testing.local_cluster.ports import LOOPBACK

# Variable of the connection that include/clusters/local.yaml names.
CONNECTION = "AIRFLOW_CONN_SLURM_LOCAL"


def ssh_connection(cluster: LocalCluster) -> dict[str, Any]:
    """Return the Airflow connection to the login node in its JSON form. The cluster need not be up yet."""
    extra = {"key_file": str(cluster.ssh_key), "known_hosts": str(cluster.known_hosts)}
    return {
        "conn_type": "ssh",
        "host": LOOPBACK,
        "port": cluster.ssh_port,
        "login": "svc",
        "extra": extra,
    }


class Site:
    """Copy of ``include/`` with cluster files for a local cluster.

    Args:
        cluster: The cluster; it need not be up yet.
        folder: Destination of the copy of ``include/``.
        name: Name of the first cluster file; default: the cluster's name.
        **values: Values of that file that differ from local.yaml.
    """

    def __init__(self, cluster: LocalCluster, folder: Path, name: str = "", **values: Any) -> None:
        self.cluster = cluster
        self.name = name or cluster.settings.name
        self.include = folder / "include"
        shutil.copytree(paths.INCLUDE, self.include, ignore=shutil.ignore_patterns("__pycache__"))
        local = yaml.safe_load((self.include / "clusters" / "local.yaml").read_text())
        local["environment"] = {"venv": str(paths.home() / "cluster-env")}
        self.values: dict[str, Any] = {**local, "workspace": str(cluster.workspace), **values}
        self.write_cluster(self.name, self.values)

    @property
    def workspace(self) -> Path:
        """Workspace of the jobs, on the file system that hosts and this machine share."""
        return self.cluster.workspace

    @property
    def environment(self) -> dict[str, str]:
        """Environment of an Airflow that uses this site."""
        return {
            CONNECTION: json.dumps(ssh_connection(self.cluster)),
            "LLM_BRIDGE_INCLUDE": str(self.include),
        }

    def write_cluster(self, name: str, values: dict[str, Any]) -> None:
        """Write a cluster file."""
        (self.include / "clusters" / f"{name}.yaml").write_text(yaml.safe_dump(values))

    def variant(self, suffix: str, **changes: Any) -> str:
        """Write another cluster file with changed values, and return its name.

        Args:
            suffix: Appended to the site's name.
            **changes: New values; mappings are merged.
        """
        merged = {
            key: self.values[key] | change if isinstance(change, dict) else change
            for key, change in changes.items()
        }
        name = f"{self.name}_{suffix}"
        self.write_cluster(name, self.values | merged)
        return name

    def run(self, host: str, *argv: str, user: str | None = None) -> str:
        """Run a program that must not fail, and return its output."""
        done = self.cluster.run(host, [*argv], user=user)
        assert done.returncode == 0, f"{argv[0]} on {host}: {done.stderr or done.stdout}"
        return done.stdout

    def end_jobs(self) -> None:
        """Cancel all jobs and wait until the nodes are free of them."""
        deadline = time.monotonic() + 60
        while self.cluster.run("login", ["squeue", "-h"], user="svc").stdout.strip():
            self.cluster.run("login", ["scancel", "--user=svc"], user="svc")
            assert time.monotonic() < deadline, "jobs do not end"
            time.sleep(0.3)
