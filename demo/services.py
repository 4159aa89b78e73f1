"""Cluster, Hub and Airflow of the demo: start, stop, state."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

from demo import paths
from testing.airflow import LocalAirflow
from testing.airflow_api import ApiError
from testing.hub import Hub
from testing.local_cluster import LocalCluster, LocalClusterError
from testing.paths import DAGS, PLUGINS, airflow_python
from testing.site import CONNECTION, ssh_connection
from testing.stack import CLUSTER, RECIPE, ProcessStack

SSH_PORT = 22022
LOGS = paths.DEMO / "logs"


class DemoError(RuntimeError):
    """The demo cannot continue; the message has the reason, the place, and the next action."""


class Demo(ProcessStack):
    """Cluster, Hub and Airflow of the demo."""

    def __init__(self) -> None:
        self.cluster = LocalCluster(CLUSTER, ssh_port=SSH_PORT)
        self.hub = Hub(self.cluster, paths.DEMO / "hub")
        self._airflow: LocalAirflow | None = None

    @property
    def airflow(self) -> LocalAirflow:
        """Airflow with connections to the cluster and the Hub; created on first use: it needs the Hub's token."""
        if self._airflow is None:
            self._airflow = LocalAirflow(
                paths.AIRFLOW_HOME,
                dags=DAGS,
                plugins=PLUGINS,
                env=self._environment(),
                python=airflow_python(),
            )
        return self._airflow

    def _environment(self) -> dict[str, str]:
        """Return the variables of an Airflow that uses the local cluster, which need not be up yet."""
        return {
            CONNECTION: json.dumps(ssh_connection(self.cluster)),
            "AIRFLOW_CONN_HUGGINGFACE_LOCAL": self.hub.connection,
            "LLM_BRIDGE_INCLUDE": str(paths.include_dir()),
            "LLM_BRIDGE_RECIPE": RECIPE,
        }

    # ---- start and stop

    @property
    def _note(self) -> Path:
        return paths.DEMO / "started-cluster"

    def start_cluster(self) -> bool:
        """Start the cluster and the Hub.

        Returns:
            Whether this call started the cluster.
        """
        started = self.cluster.up()
        if started:
            self._note.touch()
        self.hub.start()
        return started

    def stop(self) -> list[str]:
        """Stop everything that the demo started.

        Returns:
            A line for each stopped part.
        """
        lines = []
        if paths.AIRFLOW_HOME.exists() and self.airflow.processes():
            # Otherwise the run would continue, and use cores, when Airflow is up again.
            with contextlib.suppress(ApiError):
                self.end_runs()
            self.airflow.stop()
            lines.append("Airflow stopped")
        if self._note.exists():
            # For the same reason: slurmctld keeps its queue.
            with contextlib.suppress(LocalClusterError, subprocess.TimeoutExpired):
                self.cluster.run("ctl", ["scancel", "--user=svc"], timeout=20)
            self.cluster.down()
            self._note.unlink()
            lines.append("cluster and Hub stopped")
        elif self.cluster.status().up:
            self.cluster.stop_service("hub")
            lines.append(
                "the cluster was up before the demo and stays up; `python3 -m testing.local_cluster down` stops it"
            )
        return lines

    def wipe(self) -> None:
        """Delete the cluster's files; it must be down."""
        if not self.cluster.status().up:
            self.cluster.down(wipe=True)

    def pids(self) -> list[int]:
        """Return the pids of all processes of the demo, jobs included."""
        from testing.local_cluster.namespaces import Namespaces

        spaces = Namespaces(CLUSTER)
        jobs = spaces.processes(spaces.present()).values()
        return [os.getpid(), *self.airflow.processes(), *(pid for host in jobs for pid in host)]


def seconds_since(begin: float) -> str:
    """Return the time since ``begin``, for lines such as "cluster up (5.2 s)".

    Args:
        begin: Of `time.monotonic()`.
    """
    return f"{time.monotonic() - begin:.1f} s"
