"""Cluster, Hub and Airflow of the demo: up, down, what is up."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from demo import paths
from demo.airflow import LOOPBACK, LocalAirflow, free_port
from demo.airflow_api import ApiError
from demo.hub_client import OWNER
from local_cluster import LocalCluster, LocalClusterError

CLUSTER, SSH_PORT = "local", 22022
DAG, RECIPE = "post_training", "tiny_cpu"
RUN_PREFIX = "demo-"
HUB_PORT = 8090  # in the cluster: include/clusters/local.yaml has it in HF_ENDPOINT


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why, where, and what to do."""


class Hub:
    """The test Hub, a host `hub` of the local cluster.

    Args:
        cluster: the cluster that it is part of.
        directory: where it keeps its repositories.
    """

    def __init__(self, cluster: LocalCluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.tokens = directory / "tokens.json"
        self.note = directory / "port"

    @property
    def token(self) -> str:
        """A token that may write everything of user `demo`."""
        if not self.tokens.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            user = {"user": OWNER, "role": "write", "orgs": []}
            with os.fdopen(os.open(self.tokens, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump({f"hf_{secrets.token_hex(17)}": user}, file)
        return str(next(iter(json.loads(self.tokens.read_text()))))

    @property
    def port(self) -> int:
        """On this machine's loopback."""
        return int(self.note.read_text()) if self.note.exists() else HUB_PORT

    @property
    def url(self) -> str:
        """Address for this machine; jobs use http://hub:8090."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def client_cache(self) -> Path:
        """HF_HOME of clients on this machine."""
        return self.directory / "client"

    def answers(self) -> bool:
        """Whether it is up, and is the one that knows our token."""
        if not self.tokens.exists():
            return False
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            return httpx.get(
                f"{self.url}/api/whoami-v2", headers=headers, timeout=5, trust_env=False
            ).is_success
        except httpx.HTTPError:
            return False

    def start(self) -> bool:
        """Start it; returns False when it was up already."""
        if self.answers():
            return False
        self.cluster.stop_service("hub")
        token_file = self.tokens if self.token else None  # reading the token makes the file
        port = free_port(HUB_PORT)
        argv = [str(paths.airflow_python()), "-m", "local_hub", "--root", str(self.directory / "repos")]
        argv += ["--host", "0.0.0.0", "--port", str(HUB_PORT), "--tokens", str(token_file)]
        env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
        self.cluster.start_service("hub", listen_port=port, port=HUB_PORT, argv=argv, env=env)
        self.note.write_text(str(port))
        return True

    def client_environment(self, **more: str) -> dict[str, str]:
        """Variables for an unmodified client on this machine, away from the user's own token and cache."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **own,
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.client_cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": f"{LOOPBACK},localhost",
            **more,
        }


class Demo:
    """All that the demo starts."""

    def __init__(self) -> None:
        self.cluster = LocalCluster(CLUSTER, ssh_port=SSH_PORT)
        self.hub = Hub(self.cluster, paths.DEMO / "hub")
        self._airflow: LocalAirflow | None = None

    @property
    def airflow(self) -> LocalAirflow:
        """Airflow with connections to the cluster and the Hub; made when first needed, since that needs a token."""
        if self._airflow is None:
            self._airflow = LocalAirflow(
                paths.AIRFLOW_HOME,
                dags=paths.DAGS,
                plugins=paths.PLUGINS,
                env=airflow_environment(self.cluster, self.hub.token),
                python=paths.airflow_python(),
            )
        return self._airflow

    # ---- who started what

    @property
    def _note(self) -> Path:
        return paths.DEMO / "started-cluster"

    def start_cluster(self) -> bool:
        """Start cluster and Hub; returns whether the cluster was started just now."""
        started = self.cluster.up()
        if started:
            self._note.touch()
        self.hub.start()
        return started

    def end_runs(self) -> list[str]:
        """End what earlier demos have left going on in Airflow; returns the runs' ids."""
        api = self.airflow.api()
        runs = [run for run in api.unfinished(DAG) if run.startswith(RUN_PREFIX)]
        for run in runs:
            api.fail(DAG, run)
        return runs

    def stop(self) -> list[str]:
        """End all that the demo has started; returns a line for each."""
        lines = []
        if paths.AIRFLOW_HOME.exists() and self.airflow.processes():
            # Or else it would go on, and take up cores, when Airflow is up again.
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
                "the cluster was up before the demo and stays: `python3 -m local_cluster down` ends it"
            )
        return lines

    def wipe(self) -> None:
        """Delete the cluster's files; it must be down."""
        if not self.cluster.status().up:
            self.cluster.down(wipe=True)

    def pids(self) -> list[int]:
        """All processes of the demo, jobs included."""
        from local_cluster.namespaces import Namespaces

        spaces = Namespaces(CLUSTER)
        jobs = spaces.processes(spaces.present()).values()
        return [os.getpid(), *self.airflow.processes(), *(pid for host in jobs for pid in host)]


def airflow_environment(cluster: LocalCluster, hub_token: str) -> dict[str, str]:
    """Variables for an Airflow that uses the local cluster.

    Args:
        cluster: need not be up yet.
        hub_token: for the connection `huggingface_local`.
    """
    ssh = {
        "conn_type": "ssh",
        "host": LOOPBACK,
        "port": cluster.ssh_port,
        "login": "svc",
        "extra": {"key_file": str(cluster.ssh_key), "known_hosts": str(cluster.known_hosts)},
    }
    hub = {"conn_type": "generic", "password": hub_token}
    return {
        "AIRFLOW_CONN_SLURM_LOCAL": json.dumps(ssh),
        "AIRFLOW_CONN_HUGGINGFACE_LOCAL": json.dumps(hub),
        "LLM_BRIDGE_INCLUDE": str(paths.include_dir()),
        "LLM_BRIDGE_NIGHTLY_RECIPE": RECIPE,
    }


def make_assets() -> bool:
    """Make the base model and the data; False when they are there, made by the same program."""
    program = paths.ROOT / "demo" / "make_assets.py"
    stamp = paths.ASSETS / "made-by"
    if stamp.exists() and stamp.read_text() == program.read_text():
        return False
    shutil.rmtree(paths.ASSETS, ignore_errors=True)
    run_program([paths.cluster_python(), program, "--out", paths.ASSETS], "make model and data")
    stamp.write_text(program.read_text())
    return True


def run_program(argv: list[str | Path], what: str, env: Mapping[str, str] | None = None) -> str:
    """Run one of the demo's programs; returns what it printed.

    Raises:
        DemoError: it failed; the text holds the end of what it said, and the file with all of it.
    """
    log = paths.DEMO / "logs" / f"{what.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        done = subprocess.run(
            [str(part) for part in argv],
            cwd=paths.ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    if done.returncode:
        end = "\n  ".join(log.read_text(errors="replace").strip().splitlines()[-6:])
        raise DemoError(f"cannot {what} (exit code {done.returncode}), see {log}:\n  {end}")
    return done.stdout


def seconds_since(begin: float) -> str:
    """For lines such as "cluster up (5.2 s)"."""
    return f"{time.monotonic() - begin:.1f} s"


__all__ = [
    "Demo",
    "DemoError",
    "Hub",
    "LocalClusterError",
    "airflow_environment",
    "make_assets",
    "run_program",
]
