"""How people reach Ray's dashboard: an ssh command, and a button where the cluster file has an address for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import load_cluster
from llm_bridge.plugin import LlmBridgePlugin
from llm_bridge.ray import dashboard
from llm_bridge.ray.operators import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.ray.sensors import RayJobSensor
from llm_bridge.ray.submission import Where

MINIMAL = "ssh_conn_id: {conn}\nworkspace: /w\ngpus_per_node: 8\nray: {{{ray}}}\n"
ADDRESS = "http://10.0.0.5:12001"


@pytest.fixture
def site(include: Path) -> Any:
    """Write a cluster file `mine`."""

    def write(ray: str = "", conn: str = "login") -> None:
        (include / "clusters" / "mine.yaml").write_text(MINIMAL.format(ray=ray, conn=conn))

    return write


def test_the_button_opens_what_the_cluster_file_says(site: Any) -> None:
    site('dashboard_url: "https://gate.example.org/ray/{host}/{port}/"')
    assert dashboard.url_for("mine", ADDRESS) == "https://gate.example.org/ray/10.0.0.5/12001/"


def test_without_that_key_there_is_no_link(site: Any) -> None:
    site()
    pushed: dict[str, str] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.__setitem__(key, value))
    dashboard.offer(ti, "mine", ADDRESS)
    assert pushed == {}
    site('dashboard_url: "http://{host}:{port}"')
    dashboard.offer(ti, "mine", ADDRESS)
    assert pushed == {"ray_dashboard": ADDRESS}


def test_a_ray_cluster_that_is_no_slurm_job_is_opened_at_its_address() -> None:
    where = Where.of({"address": "http://ray.example.org:8265"})
    assert dashboard.url_for(where.target.cluster, where.dashboard) == "http://ray.example.org:8265"


@pytest.mark.parametrize(
    "url", ["{host}:{port}", "http://{host}", "http://x/", "http://{host}:{port}/{user}"]
)
def test_an_address_without_a_place_for_host_and_port_is_refused(site: Any, url: str) -> None:
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
def test_the_ssh_command_goes_where_airflow_goes(
    site: Any, monkeypatch: pytest.MonkeyPatch, login: dict[str, Any], command: str
) -> None:
    site()
    monkeypatch.setenv("AIRFLOW_CONN_LOGIN", json.dumps({"conn_type": "ssh", **login}))
    assert dashboard.ssh_command("mine", ADDRESS) == command


def test_where_airflow_runs_on_the_login_node_its_name_is_left_to_the_reader(site: Any) -> None:
    site(conn="null")
    assert dashboard.ssh_command("mine", ADDRESS) == "ssh -N -L 8265:10.0.0.5:12001 LOGIN_NODE"


def test_the_button_survives_a_dags_way_to_the_api_server() -> None:
    """Airflow shows only links of classes that a plugin has registered."""
    with DAG("links") as dag:
        RayClusterOperator(task_id="up", cluster="local", script="#!/bin/sh\n")
        RaySubmitJobOperator(task_id="submit", ray={"address": "http://x"}, entrypoint=["true"])
        RayJobSensor(task_id="wait", submitted={})
    tasks = DagSerialization.to_dict(dag)["dag"]["tasks"]
    links = [task["__var"]["_operator_extra_links"] for task in tasks]
    assert links == [{"Ray dashboard": "ray_dashboard"}] * 3
    assert [link.name for link in LlmBridgePlugin.operator_extra_links] == ["Ray dashboard"]
