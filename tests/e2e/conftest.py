"""The whole stack for the end-to-end tests: a Slurm cluster, a test Hub, a real Airflow, and sinks for alerts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.airflow import LocalAirflow, free_port
from demo.services import Hub, airflow_environment, run_program
from local_cluster import LocalCluster
from tests.alerts.sinks import Mails, Posts, mail_server, web_server

ROOT = Path(__file__).resolve().parents[2]
REPO = "demo/tiny-llama-gsm8k"


@dataclass
class Stack:
    """Everything that a test talks to."""

    cluster: LocalCluster
    hub: Hub
    airflow: LocalAirflow
    mails: Mails
    posts: Posts
    assets: Path

    def run(self, run_id: str, timeout: float = 900, **conf: Any) -> str:
        """Trigger ``post_training`` with the tiny recipe and wait for its end; returns the run's state."""
        self.trigger(run_id, **conf)
        return self.airflow.api().wait("post_training", run_id, timeout)

    def trigger(self, run_id: str, **conf: Any) -> None:
        """Only start it."""
        api = self.airflow.api()
        api.trigger("post_training", {"recipe": "tiny_cpu", "cluster": "test", **conf}, run_id)

    def states(self, run_id: str) -> dict[str, str]:
        """Task -> state."""
        return {task["task_id"]: task["state"] for task in self.airflow.api().tasks("post_training", run_id)}

    def log(self, run_id: str, task_id: str) -> str:
        """All log files of a task, its trigger's included."""
        files = self.airflow.task_logs("post_training", run_id, task_id)
        return "\n".join(file.read_text() for file in files)

    def squeue(self) -> list[str]:
        """Names of the jobs that wait or run."""
        return self.cluster.run("login", ["squeue", "-h", "-o", "%j"], user="svc").stdout.split()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("e2e")
    cluster = LocalCluster("e2e", ssh_port=22622)
    cluster.down(wipe=True)
    cluster.up()
    hub = Hub(cluster, folder / "hub")
    airflow: LocalAirflow | None = None
    sinks = ExitStack()
    mails, posts = sinks.enter_context(mail_server()), sinks.enter_context(web_server())
    try:
        hub.start()
        assets = make_assets(hub, folder / "assets")
        environment = {
            **airflow_environment(cluster, hub.token),
            "LLM_BRIDGE_INCLUDE": str(include(folder / "include", cluster)),
            "AIRFLOW_CONN_MAIL_TEST": mails.connection,
            "AIRFLOW_CONN_HOOK_TEST": f"http://127.0.0.1:{posts.port}",
            "AIRFLOW_CONN_HUGGINGFACE_WRONG": json.dumps(
                {"conn_type": "generic", "password": "hf_wrong_token_123"}
            ),
        }
        airflow = LocalAirflow(
            folder / "airflow", dags(folder / "dags"), ROOT / "plugins", env=environment, port=free_port(8180)
        )
        airflow.start()
        api = airflow.api()
        api.wait_for_dag("post_training")
        api.unpause("post_training")
        yield Stack(cluster, hub, airflow, mails, posts, assets)
    finally:
        if airflow:
            airflow.stop()
        cluster.down(wipe=True)
        sinks.close()


def dags(folder: Path) -> Path:
    """dags/ with one more that runs the tiny recipe every night."""
    shutil.copytree(ROOT / "dags", folder)
    shutil.copytree(ROOT / "tests" / "e2e" / "dags", folder, dirs_exist_ok=True)
    return folder


def include(folder: Path, cluster: LocalCluster) -> Path:
    """include/ with the clusters of the tests: `test`, and two that are wrong in one thing each; alerts on."""
    shutil.copytree(ROOT / "include", folder)
    site = yaml.safe_load((folder / "clusters" / "local.yaml").read_text())
    site["workspace"] = str(cluster.workspace)
    variants: dict[str, dict[str, Any]] = {
        "test": {},
        "wrong_token": {"hub": {"conn_id": "huggingface_wrong"}},
        "wrong_partition": {"partition": "nope"},
    }
    for name, change in variants.items():
        (folder / "clusters" / f"{name}.yaml").write_text(yaml.safe_dump(site | change))
    nightly = yaml.safe_load((folder / "recipes" / "tiny_cpu.yaml").read_text())
    nightly["sft"]["verl"]["trainer"] |= {"total_epochs": 1, "save_freq": 3}
    nightly["ppo"]["verl"]["trainer"] |= {"save_freq": 1}
    # In one allocation with SFT: what is cleared and done again then is another job than the one that failed.
    nightly |= {"cluster": "test", "allocation": "shared"}
    (folder / "recipes" / "nightly_tiny.yaml").write_text(yaml.safe_dump(nightly))
    alerts = {
        "email": {"conn_id": "mail_test", "sender": "llm-bridge@example.org", "to": ["team@example.org"]},
        "http": {"conn_id": "hook_test", "endpoint": "/hook"},
    }
    (folder / "alerts.yaml").write_text(yaml.safe_dump(alerts))
    return folder


def make_assets(hub: Hub, folder: Path) -> Path:
    """Base model and data, on the Hub."""
    from demo import paths

    run_program(
        [paths.cluster_python(), ROOT / "demo" / "make_assets.py", "--out", folder], "make model and data"
    )
    environment = hub.client_environment(PYTHONPATH=str(ROOT))
    run_program(
        [sys.executable, "-m", "demo.hub_client", "upload", folder], "upload model and data", environment
    )
    return folder
