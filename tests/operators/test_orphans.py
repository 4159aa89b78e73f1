"""The sweep that cancels jobs whose run has ended.

The runs' states are a stand-in, because Airflow's API needs a supervisor; tests/chaos uses the real one.
"""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from airflow.utils.state import DagRunState

from llm_bridge.operators.orphans import ReapOrphansOperator
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.remote.host_session import IDLE_VARIABLE


@pytest.fixture
def orphan(task: Any, slurm: Any) -> Any:
    """Submit a job that does not start; return its id."""
    operator = SlurmSubmitOperator(
        task_id="t",
        cluster="test",
        script="#!/bin/bash\nsleep 60\n",
        sbatch={"options": {"begin": "now+1hour"}},
    )
    job_id = task.start(operator).job_id
    yield job_id
    slurm.run("ctl", ["scancel", job_id])


def sweep(task: Any, state: str | None, **options: Any) -> dict[str, list[str]]:
    def run_state(dag_id: str, run_id: str) -> DagRunState:
        if state is None or (dag_id, run_id) != (task.ti.dag_id, task.ti.run_id):
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))
        return DagRunState(state)

    task.ti.get_dagrun_state = run_state
    return ReapOrphansOperator(task_id="test", cluster="test", **options).execute(task.context)


def queued(slurm: Any, job_id: str) -> bool:
    return slurm.run("login", ["squeue", "-h", "-o", "%i"], user="svc").stdout.split().count(job_id) == 1


def test_the_first_sweep_reports_the_orphan_that_the_second_cancels(
    task: Any, orphan: str, slurm: Any
) -> None:
    assert orphan in sweep(task, "failed")["seen"]
    assert queued(slurm, orphan)
    assert sweep(task, "failed")["cancelled"] == [orphan]
    assert not queued(slurm, orphan)


@pytest.mark.parametrize("state", ["running", "queued"])
def test_a_job_whose_run_is_active_is_not_cancelled(task: Any, orphan: str, slurm: Any, state: str) -> None:
    for _ in range(2):
        assert sweep(task, state)["cancelled"] == []
    assert queued(slurm, orphan)


def test_a_job_of_another_airflow_is_never_cancelled(task: Any, orphan: str, slurm: Any) -> None:
    for _ in range(2):
        assert orphan in sweep(task, None)["unknown"]
    assert queued(slurm, orphan)


def test_repeated_dry_runs_cancel_nothing(task: Any, orphan: str, slurm: Any) -> None:
    for _ in range(2):
        assert sweep(task, "failed", report_only="True")["cancelled"] == []
    assert sweep(task, "failed")["cancelled"] == []
    assert queued(slurm, orphan)


def test_a_foreign_job_with_a_name_like_llm_bridges_is_ignored(task: Any, slurm: Any) -> None:
    script = "#!/bin/bash\nsleep 60\n"
    argv = ["sbatch", "--parsable", "--job-name=llmb-t-1", "--begin=now+1hour", f"--chdir={slurm.workspace}"]
    job_id = slurm.run("login", argv, user="svc", input=script).stdout.strip()
    assert all(job_id not in ids for ids in sweep(task, "failed").values())
    slurm.run("ctl", ["scancel", job_id])


def test_an_unreachable_cluster_is_skipped(task: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IDLE_VARIABLE, "0")  # a session process has its connection already
    slurm.stop("sshd")
    try:
        with pytest.raises(
            AirflowSkipException, match="cluster test unavailable; the next sweep tries again"
        ):
            sweep(task, "failed")
    finally:
        slurm.start("sshd")
