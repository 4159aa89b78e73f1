"""Tasks of the DAG cluster_doctor, with made-up XComs; tests/operators has the checks and the job on a real cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llm_bridge.config.loader import load_cluster
from llm_bridge.pipeline import doctor_tasks
from llm_bridge.pipeline.doctor_tasks import ReportOperator
from llm_bridge.remote.messages import ERROR, OK, Finding

GOOD = {"findings": [Finding("partition", OK, "main")._asdict()], "later": [], "nodes": 2, "why_no_job": ""}
BAD = GOOD | {
    "findings": [
        Finding("account", ERROR, "account in include/clusters/local.yaml", "choose from a")._asdict()
    ]
}
DIAGNOSIS = {"title": "Environment", "evidence": "no torch", "node": None, "advice": "install it"}


class Context(dict[str, Any]):
    """Context of a task in a run with some XComs: (task, key) -> value."""

    def __init__(self, xcoms: dict[Any, Any], **params: Any) -> None:
        self.pushed: dict[str, Any] = {}
        ti = SimpleNamespace(
            run_id="r/1",
            xcom_pull=lambda task_ids, key="return_value": xcoms.get((task_ids, key)),
            xcom_push=lambda key, value: self.pushed.update({key: value}),
        )
        super().__init__(ti=ti, params={"cluster": "local", "run_job": True, "send_alerts": False} | params)


def examined(values: dict[str, Any], **more: Any) -> dict[Any, Any]:
    return {("examine", "return_value"): values, **{("job", key): value for key, value in more.items()}}


def test_the_job_uses_two_nodes_of_the_cluster_and_the_runs_directory(include: Path) -> None:
    job = doctor_tasks.job(Context(examined(GOOD)))
    assert (job.template, job.resources.nodes, job.resources.gpus_per_node) == ("doctor", 2, 8)
    assert job.directory.startswith(f"{load_cluster('local').workspace}/cluster_doctor/r-1")
    assert job.settings["checks"]["min_free_gib"] == 0.5 and "preflight" not in job.settings


def test_no_job_runs_where_the_form_or_a_check_says_so(include: Path) -> None:
    with pytest.raises(AirflowSkipException, match="the form asks for none"):
        doctor_tasks.job(Context(examined(GOOD), run_job=False))
    with pytest.raises(AirflowSkipException, match="the login does not work"):
        doctor_tasks.job(Context(examined(GOOD | {"why_no_job": "the login does not work"})))
    with pytest.raises(AirflowSkipException, match="task 'examine' failed"):
        doctor_tasks.job(Context({}))


def test_errors_fail_the_report_by_their_names_and_all_rows_are_an_xcom(include: Path) -> None:
    context = Context(examined(BAD), run_job=False)
    with pytest.raises(AirflowFailException, match=r"cluster 'local': .*errors: account\. The log above"):
        ReportOperator(task_id="report").execute(context)  # type: ignore[arg-type]
    rows = context.pushed["findings"]
    assert rows[0]["action"] == "choose from a" and rows[-1]["check"] == "alerts"
    assert {row["detail"] for row in rows if row["check"] == "all-reduce"} == {
        "because the form asks for none"
    }


def test_a_job_that_failed_is_in_the_report_with_its_diagnosis(include: Path) -> None:
    context = Context(examined(GOOD, diagnosis=DIAGNOSIS))
    with pytest.raises(AirflowFailException, match="errors: job"):
        ReportOperator(task_id="report").execute(context)  # type: ignore[arg-type]
    [job] = [row for row in context.pushed["findings"] if row["check"] == "job"]
    assert (job["detail"], job["action"]) == ("Environment: no torch", "install it")


def test_a_report_without_errors_returns_its_rows(include: Path) -> None:
    rows = ReportOperator(task_id="report").execute(Context(examined(GOOD), run_job=False))  # type: ignore[arg-type]
    assert rows[0] == Finding("partition", OK, "main")._asdict()


def test_an_examination_that_failed_fails_the_report(include: Path) -> None:
    with pytest.raises(AirflowFailException, match="errors: examine"):
        ReportOperator(task_id="report").execute(Context({}))  # type: ignore[arg-type]
