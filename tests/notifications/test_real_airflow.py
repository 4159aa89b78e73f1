"""Alerts of a real Airflow: scheduler, worker processes, triggerer, state store and Deadline Alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.airflow import LocalAirflow, free_port
from testing.paths import ROOT
from testing.sinks import Posts, web_server
from testing.waiting import until


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Once this file exists, the DAG's tasks succeed."""
    return tmp_path_factory.mktemp("state") / "fixed"


@pytest.fixture(scope="module")
def received() -> Iterator[Posts]:
    """Requests that the web server received."""
    with web_server() as got:
        yield got


@pytest.fixture
def posts(received: Posts) -> Posts:
    """Requests that the web server received in this test."""
    received.clear()
    return received


@pytest.fixture(scope="module")
def airflow(received: Posts, fixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    tmp_path = tmp_path_factory.mktemp("airflow")
    alerts = {
        "http": {"conn_id": "hook"},
        "email": {"conn_id": "nobody", "sender": "a@example.org", "to": ["b@example.org"]},
        "successes": "all",
        "late_after_hours": {"late": 0.01},
    }
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(alerts))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "wrong.yaml").write_text("base_modle: a/b\nsft: 3\n")
    environment = {
        "LLM_BRIDGE_INCLUDE": str(tmp_path),
        "ALERTS_FIXED": str(fixed),
        "AIRFLOW_CONN_HOOK": f"http://127.0.0.1:{received.port}",
        "NO_PROXY": "127.0.0.1",
        "AIRFLOW_CONN_NOBODY": json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": 1}),
    }
    airflow = LocalAirflow(
        tmp_path / "home",
        ROOT / "tests" / "notifications" / "dags",
        ROOT / "plugins",
        env=environment,
        port=free_port(18190),
        parallelism=3,
    )
    try:
        airflow.start()
        for dag in ("alerting", "late", "hanging", "refused"):
            airflow.api().wait_for_dag(dag)
            airflow.api().unpause(dag)
        yield airflow
    finally:
        airflow.stop()


def test_there_is_one_alert_per_failure_one_for_its_recovery_and_one_for_a_late_run(
    airflow: LocalAirflow, posts: Posts, fixed: Path
) -> None:
    """The mail server of the second channel does not exist, which affects neither the runs nor the other channel."""
    api = airflow.api()
    api.trigger("late", {}, "slow")
    api.trigger("alerting", {}, "one")
    assert api.wait("alerting", "one", 90) == "failed"
    states = {task["task_id"]: task["state"] for task in api.tasks("alerting", "one")}
    assert states == {"train": "failed", "merge": "upstream_failed", "down": "failed", "summary": "failed"}
    # The deadline counts from when the run was queued; the scheduler checks deadlines periodically.
    late = until(lambda: of("late", posts), 120)
    assert late["title"] == "[llm-bridge] late: not finished after 0.01 h" and late["facts"]["Run"] == "slow"
    assert late["facts"]["Active tasks"] == "sleep (running)"
    failure = until(lambda: of("failure", posts), 40)
    assert failure["title"] == "[llm-bridge] alerting: train failed: CUDA out of memory {{ 7 * 7 }}"
    assert failure["facts"]["Evidence"] == "second line" and failure["facts"]["Try"] == "1 of 1"
    assert failure["links"]["Log"].startswith(f"{airflow.url}/dags/alerting/runs/one/tasks/train")
    log = "\n".join(file.read_text() for file in airflow.task_logs("alerting", "one", "train"))
    assert len(re.findall(r"failed to send alert .* by email", log)) == 1 and "connection 'nobody'" in log
    fixed.touch()
    clear = {"dag_run_id": "one", "dry_run": False, "only_failed": False, "reset_dag_runs": True}
    api.ask("POST", "/api/v2/dags/alerting/clearTaskInstances", json=clear)
    assert api.wait("alerting", "one", 90) == "success"
    recovery = until(lambda: of("recovery", posts), 40)
    assert "this run's failure at" in recovery["facts"]["Recovered from"]
    api.trigger("alerting", {}, "two")
    assert api.wait("alerting", "two", 90) == "success"
    until(lambda: of("success", posts), 40)
    assert sorted(alert["occasion"] for _, alert in posts) == ["failure", "late", "recovery", "success"]


def test_a_hang_causes_one_alert_if_it_is_retried_and_one_failure_alert_if_no_retry_is_left(
    airflow: LocalAirflow, posts: Posts
) -> None:
    api = airflow.api()
    api.trigger("hanging", {}, "one")
    assert api.wait("hanging", "one", 90) == "failed"
    until(lambda: of("failure", posts), 40)
    assert [alert["occasion"] for _, alert in posts] == ["hang", "failure"]
    assert [alert["facts"]["Try"] for _, alert in posts] == ["1 of 2", "2 of 2"]
    assert all("gpu95: stuck" in alert["lines"] for _, alert in posts)
    # A failed job is its diagnosis, without a traceback.
    logs = [file.read_text() for file in airflow.task_logs("hanging", "one", "hang")]
    assert logs and not any("error_detail" in text or "Traceback" in text for text in logs)


def test_a_wrong_input_is_one_error_a_line_without_a_traceback_or_a_retry_and_one_alert(
    airflow: LocalAirflow, posts: Posts
) -> None:
    api = airflow.api()
    api.trigger("refused", {}, "one")
    assert api.wait("refused", "one", 90) == "failed"
    assert [(task["state"], task["try_number"]) for task in api.tasks("refused", "one")] == [("failed", 1)]
    [file] = airflow.task_logs("refused", "one", "check")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    errors = [record["event"] for record in records if record.get("level") == "error"]
    assert errors[0] == "include/recipes/wrong.yaml is not valid, 3 error(s):" and errors[-1] == "Task exited"
    assert [error.partition(": ")[0] for error in errors[1:-1]] == ["base_model", "sft", "base_modle"]
    assert "Did you mean base_model?" in errors[3]
    assert not any("error_detail" in record for record in records) and "Traceback" not in file.read_text()
    failure = until(lambda: of("failure", posts), 40)
    assert failure["facts"]["What"] == errors[0] and "base_modle: no such key" in failure["facts"]["Evidence"]
    assert failure["facts"]["Next"].startswith("no retry: correct it")


def of(occasion: str, posts: Posts) -> Any:
    """Return the alert of that occasion, if it was received."""
    return next((alert for _, alert in posts if alert["occasion"] == occasion), None)
