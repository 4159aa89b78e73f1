"""User actions on an Airflow and its cluster, in processes or in containers."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testing import paths
from testing.airflow import LocalAirflow, free_port
from testing.airflow_api import AirflowApi
from testing.hub import Hub, make_assets, publish_assets
from testing.local_cluster import LocalCluster
from testing.local_cluster.settings import state_root
from testing.postgres import Postgres
from testing.site import Site

# DAG, recipe and cluster of the demo, with and without containers.
DAG, RECIPE, CLUSTER = "post_training", "tiny_cpu", "local"
RUN_PREFIX = "demo-"


class Stack(ABC):
    """Airflow and its cluster."""

    # Has `api()`, `url` and `task_logs()` of LocalAirflow.
    airflow: Any
    # Conf of every run, in addition to the arguments of `trigger`.
    conf: Mapping[str, Any] = {}

    @functools.cached_property
    def api(self) -> AirflowApi:
        """Client of Airflow's REST API, logged in as `admin`."""
        client: AirflowApi = self.airflow.api()
        return client

    @abstractmethod
    def slurm(self, *argv: str, user: str = "svc") -> str:
        """Run a Slurm command on the cluster and return its output; ``user`` may be root."""

    def trigger(self, dag: str, run: str, **conf: Any) -> None:
        """Trigger a run."""
        self.api.trigger(dag, {**self.conf, **conf}, run)

    def run(self, dag: str, run: str, timeout: float = 900, **conf: Any) -> str:
        """Trigger a run, wait for its end, and return its state."""
        self.trigger(dag, run, **conf)
        return self.api.wait(dag, run, timeout)

    def states(self, dag: str, run: str) -> dict[str, str]:
        """Return the state of each task."""
        return {task["task_id"]: task["state"] for task in self.api.tasks(dag, run)}

    def tries(self, dag: str, run: str) -> dict[str, list[str]]:
        """Return the states of all tries of each task, the oldest try first."""
        found = {}
        for task in self.api.tasks(dag, run):
            path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task['task_id']}/tries"
            tries = self.api.ask("GET", path)["task_instances"]
            tries.sort(key=lambda one: int(one["try_number"]))
            found[task["task_id"]] = [str(one["state"]) for one in tries]
        return found

    def mark(self, dag: str, run: str, state: str, task: str) -> None:
        """Set a task's state, as a user does in the UI."""
        path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}"
        self.api.ask("PATCH", path, json={"new_state": state})

    def clear(self, dag: str, run: str, *tasks: str) -> None:
        """Clear tasks, and the run with them."""
        body = {
            "dry_run": False,
            "dag_run_id": run,
            "task_ids": [*tasks],
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.api.ask("POST", f"/api/v2/dags/{dag}/clearTaskInstances", json=body)

    def end_runs(self, dag: str = DAG, prefix: str = RUN_PREFIX) -> list[str]:
        """Mark unfinished runs failed and return their ids.

        Args:
            dag: DAG of the runs.
            prefix: Start of the runs' ids.
        """
        api = self.api
        runs = [run for run in api.unfinished(dag) if run.startswith(prefix)]
        for run in runs:
            api.fail(dag, run)
        return runs

    def queue(self) -> list[str]:
        """Return the jobs in the queue, a line ``ID NAME STATE`` each."""
        return self.slurm("squeue", "--noheader", "--format=%i %j %T").splitlines()


class ProcessStack(Stack):
    """Cluster and Airflow in processes of this machine."""

    cluster: LocalCluster

    def slurm(self, *argv: str, user: str = "svc") -> str:
        """Run a Slurm command on the login node and return its output; ``user`` may be root."""
        return self.cluster.run("login", [*argv], user=user if user != "root" else None).stdout

    def log(self, dag: str, run: str, task: str) -> str:
        """Return all log files of a task, its trigger's included, as one text."""
        return "\n".join(file.read_text() for file in self.airflow.task_logs(dag, run, task))

    def ready(self, dag: str) -> None:
        """Wait until Airflow has a DAG, and unpause it."""
        self.api.wait_for_dag(dag)
        self.api.unpause(dag)


class LocalStack(ProcessStack):
    """Private stack in processes of this machine: a Slurm cluster, a test Hub, PostgreSQL, Airflow.

    With SQLite, any transaction that writes after it has read may fail with "database is locked", whatever the timeout.

    Args:
        folder: Folder for their files; never emptied.
        cluster: The cluster; `start` wipes it if it is up.
        site: Name of the first cluster file, see :class:`Site`.
        port: Preferred port of Airflow.
        dags: DAGs folder.
        **values: Values of the first cluster file, see :class:`Site`.
    """

    airflow: LocalAirflow

    def __init__(
        self,
        folder: Path,
        cluster: LocalCluster,
        site: str = "",
        *,
        port: int = 8180,
        dags: Path = paths.DAGS,
        **values: Any,
    ) -> None:
        self.folder, self.cluster = folder, cluster
        self.site = Site(cluster, folder, site, **values)
        self.hub = Hub(cluster, folder / "hub")
        self.assets = folder / "assets"
        self.environment: dict[str, str] = {}
        # Not below `folder`, which user postgres may be unable to enter. Its port is no other stack's.
        settings = cluster.settings
        self.postgres = Postgres(state_root() / f"{settings.name}-postgres", settings.ssh_port + 5000)
        self._dags, self._port = dags, port

    def start(self) -> None:
        """Start everything from zero; changes of ``environment`` before are effective."""
        self.cluster.down(wipe=True)
        self.cluster.up()
        self.postgres.start()
        self.start_services()
        self.airflow = self.make_airflow(
            self.folder / "airflow", {**self.site.environment, **self.environment}
        )
        self.airflow.start()

    def start_services(self) -> None:
        """Start the services that Airflow's tasks need in addition to the cluster."""
        self.hub.start()
        make_assets(self.assets, self.folder / "logs")
        publish_assets(self.hub, self.assets, self.folder / "logs")
        self.environment["AIRFLOW_CONN_HUGGINGFACE_LOCAL"] = self.hub.connection

    def make_airflow(self, home: Path, environment: dict[str, str]) -> LocalAirflow:
        """Return an Airflow that is not started yet."""
        port = free_port(self._port)
        return LocalAirflow(
            home, self._dags, paths.PLUGINS, env=environment, port=port, database_url=self.postgres.url
        )

    def stop(self) -> None:
        """Stop everything, and delete the cluster's files."""
        if hasattr(self, "airflow"):
            self.airflow.stop()
        self.postgres.stop()
        self.cluster.down(wipe=True)
