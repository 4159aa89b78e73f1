"""Alerts of a real Airflow: scheduler, worker processes, triggerer, its state store and its Deadline Alerts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.airflow import LocalAirflow, free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def mended(tmp_path: Path) -> Path:
    """Once it is there, the DAG's tasks succeed."""
    return tmp_path / "mended"


@pytest.fixture
def airflow(include: Any, posts: Any, mended: Path, tmp_path: Path) -> Iterator[LocalAirflow]:
    include(
        http={"conn_id": "hook"},
        email={"conn_id": "nobody", "sender": "a@example.org", "to": ["b@example.org"]},
        successes="all",
        late_after_hours={"late": 0.001},
    )
    environment = {
        "LLM_BRIDGE_INCLUDE": str(tmp_path),
        "ALERTS_MENDED": str(mended),
        "AIRFLOW_CONN_HOOK": f"http://127.0.0.1:{posts.port}",
        "AIRFLOW_CONN_NOBODY": json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": 1}),
    }
    airflow = LocalAirflow(
        tmp_path / "home",
        ROOT / "tests" / "alerts" / "dags",
        ROOT / "plugins",
        env=environment,
        port=free_port(18190),
        parallelism=2,
    )
    try:
        airflow.start()
        for dag in ("alerting", "late", "hanging"):
            airflow.api().wait_for_dag(dag)
            airflow.api().unpause(dag)
        yield airflow
    finally:
        airflow.stop()


def test_one_alert_a_failure_one_for_its_recovery_and_one_for_a_late_run(
    airflow: LocalAirflow, posts: Any, mended: Path
) -> None:
    """The mail server of the second channel is not there, which changes nothing."""
    api = airflow.api()
    api.trigger("late", {}, "slow")
    api.trigger("alerting", {}, "one")
    assert api.wait("alerting", "one", 90) == "failed"
    states = {task["task_id"]: task["state"] for task in api.tasks("alerting", "one")}
    assert states == {"train": "failed", "merge": "upstream_failed", "down": "failed", "summary": "failed"}
    # The deadline counts from when the run was queued; the scheduler looks for missed ones now and then.
    late = eventually(lambda: of("late", posts))
    assert late["title"] == "[llm-bridge] late: not done after 0.001 h" and late["facts"]["Run"] == "slow"
    assert late["facts"]["At work"] == "sleep (running)"
    failure = eventually(lambda: of("failure", posts))
    assert failure["title"] == "[llm-bridge] alerting: train failed: CUDA out of memory {{ 7 * 7 }}"
    assert failure["facts"]["Evidence"] == "second line" and failure["facts"]["Attempt"] == "1 of 1"
    assert failure["links"]["Log"].startswith(f"{airflow.url}/dags/alerting/runs/one/tasks/train")
    log = "\n".join(file.read_text() for file in airflow.task_logs("alerting", "one", "train"))
    assert log.count("did not go out by email") == 1 and "connection 'nobody'" in log
    mended.touch()
    clear = {"dag_run_id": "one", "dry_run": False, "only_failed": False, "reset_dag_runs": True}
    api.ask("POST", "/api/v2/dags/alerting/clearTaskInstances", json=clear)
    assert api.wait("alerting", "one", 90) == "success"
    recovery = eventually(lambda: of("recovery", posts))
    assert "this run had failed on" in recovery["facts"]["Before"]
    api.trigger("alerting", {}, "two")
    assert api.wait("alerting", "two", 90) == "success"
    eventually(lambda: of("success", posts))
    assert sorted(said["occasion"] for _, said in posts) == ["failure", "late", "recovery", "success"]


def test_a_hang_that_is_tried_again_is_one_alert_and_one_without_a_try_left_is_one_failure(
    airflow: LocalAirflow, posts: Any
) -> None:
    api = airflow.api()
    api.trigger("hanging", {}, "one")
    assert api.wait("hanging", "one", 90) == "failed"
    eventually(lambda: of("failure", posts))
    assert [said["occasion"] for _, said in posts] == ["hang", "failure"]
    assert [said["facts"]["Attempt"] for _, said in posts] == ["1 of 2", "2 of 2"]
    assert all("gpu95: stuck" in said["lines"] for _, said in posts)


def of(occasion: str, posts: Any) -> Any:
    """The alert of that occasion, if it has come."""
    return next((said for _, said in posts if said["occasion"] == occasion), None)


def eventually(look: Callable[[], Any], seconds: float = 40) -> Any:
    """What ``look`` finds before the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"nothing within {seconds} s")
