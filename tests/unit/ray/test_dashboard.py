"""Access to Ray's dashboard: an ssh command, and a link if the cluster file has an address for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.links import push_link
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.plugin import LlmBridgePlugin
from llm_bridge.ray import dashboard
from llm_bridge.ray.submission import RayCluster
from llm_bridge.sensors.ray import RayJobSensor

MINIMAL = "ssh_conn_id: {conn}\nworkspace: /w\ngpus_per_node: 8\nray: {{{ray}}}\n"
ADDRESS = "http://10.0.0.5:12001"


@pytest.fixture
def site(include: Path) -> Any:
    """Write a cluster file `mine`."""

    def write(ray: str = "", conn: str = "login") -> None:
        (include / "clusters" / "mine.yaml").write_text(MINIMAL.format(ray=ray, conn=conn))

    return write


def test_the_link_has_the_address_of_the_cluster_file(site: Any) -> None:
    site('dashboard_url: "https://gate.example.org/ray/{host}/{port}/"')
    assert dashboard.url_for("mine", ADDRESS) == "https://gate.example.org/ray/10.0.0.5/12001/"


def test_without_dashboard_url_there_is_no_link(site: Any) -> None:
    site()
    pushed: dict[str, str] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.__setitem__(key, value))
    push_link(ti, "mine", ADDRESS)
    assert pushed == {}
    site('dashboard_url: "http://{host}:{port}"')
    push_link(ti, "mine", ADDRESS)
    assert pushed == {"ray_dashboard": ADDRESS}


def test_a_ray_cluster_that_is_no_slurm_job_is_opened_at_its_address() -> None:
    cluster = RayCluster.from_output({"address": "http://ray.example.org:8265"})
    assert dashboard.url_for(cluster.target.cluster, cluster.dashboard) == "http://ray.example.org:8265"


@pytest.mark.parametrize(
    "url", ["{host}:{port}", "http://{host}", "http://x/", "http://{host}:{port}/{user}"]
)
def test_an_address_without_placeholders_for_host_and_port_is_refused(site: Any, url: str) -> None:
    site(f'dashboard_url: "{url}"')
    with pytest.raises(ConfigError, match=r"dashboard_url: .*\{host\} and \{port\}"):
        load_cluster("mine")


@pytest.mark.parametrize(
    ("login", "command"),
    [
        (
            {"login": "anna", "host": "login.example.org"},
            "ssh -N -L 8265:10.0.0.5:12001 anna@login.example.org",
        ),
        ({"host": "l", "port": 2222}, "ssh -N -p 2222 -L 8265:10.0.0.5:12001 l"),
        ({"login": "a'b", "host": "l"}, "ssh -N -L 8265:10.0.0.5:12001 'a'\"'\"'b@l'"),
    ],
)
def test_the_ssh_command_uses_the_login_node_of_airflows_connection(
    site: Any, monkeypatch: pytest.MonkeyPatch, login: dict[str, Any], command: str
) -> None:
    site()
    monkeypatch.setenv("AIRFLOW_CONN_LOGIN", json.dumps({"conn_type": "ssh", **login}))
    assert dashboard.ssh_command("mine", ADDRESS) == command


def test_if_airflow_runs_on_the_login_node_the_command_has_a_placeholder_for_its_name(site: Any) -> None:
    site(conn="null")
    assert dashboard.ssh_command("mine", ADDRESS) == "ssh -N -L 8265:10.0.0.5:12001 LOGIN_NODE"


def test_the_link_survives_the_serialization_of_a_dag() -> None:
    """Airflow shows only links of classes that a plugin has registered."""
    with DAG("links") as dag:
        RayClusterOperator(task_id="up", cluster="local", script="#!/bin/sh\n")
        RaySubmitJobOperator(task_id="submit", ray={"address": "http://x"}, entrypoint=["true"])
        RayJobSensor(task_id="wait", submitted={})
    tasks = DagSerialization.to_dict(dag)["dag"]["tasks"]
    links = [task["__var"]["_operator_extra_links"] for task in tasks]
    ray = {"Ray dashboard": "ray_dashboard"}
    assert links == [ray, ray, {**ray, "W&B run": "wandb_run"}]
    assert [link.name for link in LlmBridgePlugin.operator_extra_links] == ["Ray dashboard", "W&B run"]
