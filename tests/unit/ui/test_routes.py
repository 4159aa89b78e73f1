"""The run page in Airflow's own API server: who may read what, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.unit.ui.conftest import DAG, HOSTILE, RUN, STARTED

RUN_PATH = f"/llm-bridge/api/runs/{DAG}/{quote(RUN)}"
WITH_DATA = ("/llm-bridge/api/runs", RUN_PATH, f"{RUN_PATH}/curves", f"{RUN_PATH}/state")
Client = Callable[[str | None], Any]


@pytest.mark.parametrize("path", [*WITH_DATA, "/llm-bridge/run", "/llm-bridge/runs"])
def test_a_request_without_login_is_refused(client: Client, path: str) -> None:
    assert client(None).get(path).status_code == 401


@pytest.mark.parametrize("path", WITH_DATA)
def test_a_user_who_may_not_read_the_dag_is_refused(client: Client, path: str) -> None:
    assert client("nobody").get(path).status_code == 403


def test_no_further_route_is_open() -> None:
    from llm_bridge.ui.routes import create_app

    one = "/api/runs/{dag_id}/{run_id}"
    tested = {"/run", "/runs", "/static", "/api/runs", one, f"{one}/curves", f"{one}/state"}
    assert {route.path for route in create_app().routes} == tested


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_script(client: Client) -> None:
    answer = client("viewer").get("/llm-bridge/run")
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "<script>" not in answer.text and "http" not in answer.text
    for name in ("run.js", "run.css", "uPlot.iife.min.js", "uPlot.min.css"):
        assert client(None).get(f"/llm-bridge/static/{name}").status_code == 200


def test_a_viewer_gets_the_run_with_attempts_queue_and_progress(client: Client) -> None:
    run = client("viewer").get(RUN_PATH).json()
    assert (run["recipe"], run["cluster"], run["run_name"]) == ("tiny", "c", HOSTILE)
    first, second = run["attempts"]
    assert (first["state"], first["diagnosis"]["evidence"], first["ended"]) == (
        "failed",
        HOSTILE,
        STARTED + 460,
    )
    assert (second["state"], second["nodes"], second["progress"]["step"]) == ("running", "n[1-2]", 3)
    assert run["lost_gpu_hours"] == 0.25
    assert run["gpu_hours"] == pytest.approx((360 + run["now"] - STARTED - 500) * 4 / 3600)
    assert run["data"]["sft"]["sample"] == [HOSTILE]
    assert run["settings"]["sft.verl.optim.lr"] == 0.1
    assert {"name": "Files of the run", "command": "ls -l '/w/it'\"'\"'s here'"} in run["commands"]


def test_a_viewer_gets_the_curves_of_all_attempts_the_ended_one_from_the_state_store(client: Client) -> None:
    curves = client("viewer").get(f"{RUN_PATH}/curves").json()["curves"]
    assert [(c["attempt"], c["name"], c["x"], c["y"]) for c in curves] == [
        (1, "train/loss", [1, 2], [1.0, 0.9]),
        (2, "train/loss", [2, 3], [0.5, 0.25]),
    ]


def test_the_list_has_the_runs_of_readable_dags(client: Client) -> None:
    assert [run["run_id"] for run in client("viewer").get("/llm-bridge/api/runs").json()["runs"]] == [RUN]


def test_the_state_of_a_run_is_what_its_page_has_of_it(client: Client) -> None:
    run, state = (client("viewer").get(path).json() for path in (RUN_PATH, f"{RUN_PATH}/state"))
    assert state == {name: run[name] for name in ("state", "queued", "ended")} and state["state"] == "running"
    assert client("viewer").get(f"{RUN_PATH}x/state").status_code == 404


def test_a_run_that_does_not_exist_is_not_found(client: Client) -> None:
    assert client("viewer").get(f"/llm-bridge/api/runs/{DAG}/other").status_code == 404


def test_the_plugin_shows_the_page_as_a_tab_of_the_run_and_in_the_navigation() -> None:
    from llm_bridge.plugin import LlmBridgePlugin

    views = {view["destination"]: view["href"] for view in LlmBridgePlugin.external_views}
    assert views == {
        "dag_run": "llm-bridge/run?dag_id={DAG_ID}&run_id={RUN_ID}",
        "nav": "llm-bridge/runs",
    }
