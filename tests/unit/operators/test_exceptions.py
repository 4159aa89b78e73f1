"""Messages of the exceptions of failed jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from llm_bridge.diagnosis.explain import FailureReport
from llm_bridge.diagnosis.progress_ledger import ProgressLedger
from llm_bridge.diagnosis.report import titled
from llm_bridge.diagnosis.retry import RetryContext, decide
from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.exceptions import (
    MAX_STACK_LINES,
    RESUBMITS,
    DiagnosedError,
    HubUploadEvent,
    HubUploadFailed,
    HubUploadPermanentError,
    LoggedConfigError,
    RayJobFailed,
    RayJobPermanentError,
    SlurmJobFailed,
    SlurmJobPermanentError,
    fail,
    logs_config_errors,
)
from llm_bridge.operators.retry_policy import DiagnosisRetryPolicy
from llm_bridge.ray.client import RayTarget
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.remote.attempt_dir import Outcome, Reason
from llm_bridge.slurm.events import EndReason, HangReport, SlurmJobEvent
from llm_bridge.slurm.status import JobInfo

INFO = JobInfo("7", "FAILED", reason="NonZeroExitCode", nodes="n1", exit_code=3)
SLURM = SlurmJobEvent("7", "big", "/w/a", EndReason.ENDED, info=INFO, last_lines=("one", "two"))
TARGET = RayTarget(cluster="big", job_id="7", directory="/w/c")
RAY = RayJobEvent(RayEndReason.FAILED, target=TARGET, submission_id="j", directory="/w/r")
FOUND = titled("cuda_oom", "out of memory")
REPORT = FailureReport(FOUND, decide(FOUND, ProgressLedger(), RetryContext()))


def test_a_failed_slurm_job_is_described_with_state_lines_log_and_diagnosis() -> None:
    error = SlurmJobFailed(SLURM, REPORT)
    text = str(error)
    assert text.startswith("Slurm job 7 on cluster 'big' ")
    assert "FAILED, exit code 3, signal 0, reason NonZeroExitCode, on n1\n" in text
    assert "\nLast lines:\n  | one\n  | two\nComplete log on the cluster: /w/a/output.log\n" in text
    assert text.endswith(FOUND.text())
    assert (error.diagnosis, error.decision) == (FOUND, REPORT.decision)


def test_without_a_report_there_is_neither_diagnosis_nor_decision() -> None:
    error = SlurmJobFailed(SLURM)
    assert (error.diagnosis, error.decision) == (None, None) and "Cause:" not in str(error)


@pytest.mark.parametrize(
    ("cancelled", "what"), [(True, "was cancelled"), (False, "continues, but this task stopped waiting")]
)
def test_after_a_time_limit_the_text_says_whether_the_job_runs_on(cancelled: bool, what: str) -> None:
    text = str(SlurmJobFailed(replace(SLURM, end=EndReason.TIMEOUT, cancelled=cancelled)))
    assert what in text and "the task's time limit has passed" in text


def test_a_job_without_a_known_state_is_described_by_the_notice() -> None:
    lost = replace(SLURM, end=EndReason.FORGOTTEN, info=None, notice="Slurm has lost job 7")
    assert "can no longer be followed: Slurm has lost job 7. Log on the cluster: /w/a/" in str(
        SlurmJobFailed(lost)
    )


@pytest.mark.parametrize("ended", [True, False])
def test_the_jobs_own_reason_and_its_hang_are_in_the_text(ended: bool) -> None:
    stacks = tuple(f"n1: frame {number}" for number in range(2 * MAX_STACK_LINES))
    hang = HangReport("30 min", stacks=stacks, ended=ended)
    text = str(SlurmJobFailed(replace(SLURM, reason=Reason("no such column"), hang=hang)))
    assert "\nThe job's own reason: no such column" in text
    assert "\nThe job hung: no output and no new step for 30 min" in text
    assert ("llm-bridge ended it" in text) is ended
    assert text.count("frame") == MAX_STACK_LINES


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"outcome": Outcome(137, 2.0)}, "ended FAILED (driver_exit_code 137): it was killed (SIGKILL)"),
        (
            {"end": RayEndReason.ALLOCATION_ENDED, "info": JobInfo("7", "CANCELLED"), "cause": "by user ann (uid 7)"},
            "lost its cluster: Slurm job 7 on cluster 'big' was cancelled: CANCELLED by user ann (uid 7)",
        ),
        (
            {"end": RayEndReason.ALLOCATION_ENDED, "info": JobInfo("7", "PENDING")},
            "lost its cluster: Slurm job 7 on cluster 'big' was requeued and starts from its beginning",
        ),
        ({"end": RayEndReason.LOST, "notice": "no such job"}, "can no longer be followed (LOST): no such job"),
    ],
)  # fmt: skip
def test_a_failed_ray_job_is_described_by_its_end(fields: dict[str, Any], what: str) -> None:
    text = str(RayJobFailed(replace(RAY, **fields), resubmits=True))
    assert text.startswith(f"Ray job j {what}")
    assert "/w/r/output.log\nLog of the Ray cluster: /w/c/output.log" in text
    assert text.endswith(f"Next: {RESUBMITS}")


def test_a_ray_job_that_cannot_start_is_not_said_to_be_submitted_again() -> None:
    event = replace(RAY, end=RayEndReason.CANNOT_START, notice="it requests GPU 9")
    text = str(RayJobPermanentError(event, resubmits=True))
    assert text.startswith("Ray job j cannot start: it requests GPU 9") and RESUBMITS not in text


def test_a_failed_upload_names_folder_repository_and_worker() -> None:
    event = HubUploadEvent("/models/m", "me/llama", "worker-1", 3, ("refused",))
    text = str(HubUploadFailed(event, REPORT))
    assert "upload of /models/m to me/llama from worker worker-1 failed: exit code 3" in text
    assert "  | refused" in text


ERRORS = [
    lambda: SlurmJobPermanentError(SLURM, REPORT),
    lambda: RayJobPermanentError(RAY, REPORT),
    lambda: HubUploadPermanentError(HubUploadEvent("/models/m", "me/llama", "w", 3), REPORT),
]


@pytest.mark.parametrize("make", ERRORS)
def test_a_failed_job_is_logged_line_by_line_and_ends_the_task_without_a_traceback(
    make: Callable[[], DiagnosedError], caplog: pytest.LogCaptureFixture
) -> None:
    error = make()
    with pytest.raises(type(error)) as raised:
        fail(error, permanent=True, policy=DiagnosisRetryPolicy())
    assert [record.message for record in caplog.records] == str(error).splitlines()
    # Airflow logs all others with a traceback, an AirflowException first of all.
    assert isinstance(raised.value, SystemExit) and not isinstance(raised.value, AirflowException)
    assert raised.value.code == 1 and raised.value.diagnosis is FOUND


@pytest.mark.parametrize("make", ERRORS)
def test_airflow_retries_no_permanent_error_also_with_a_policy_of_the_users(
    make: Callable[[], DiagnosedError],
) -> None:
    error = make()
    with pytest.raises(type(error)) as raised:
        fail(error, permanent=True, policy=ExceptionRetryPolicy(rules=[]))
    assert isinstance(raised.value, AirflowFailException) and raised.value.diagnosis is FOUND
    with pytest.raises(SlurmJobFailed) as failed:
        fail(SlurmJobFailed(SLURM, REPORT), permanent=False, policy=ExceptionRetryPolicy(rules=[]))
    assert not isinstance(failed.value, AirflowFailException)


def test_a_wrong_setting_is_logged_line_by_line_and_ends_the_task_as_an_exit_that_airflow_does_not_retry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @logs_config_errors
    def execute(_: object) -> None:
        raise ConfigError("form: 2 errors:\n  - nodes: 0\n  - stages: evil")

    # Wrapped twice, as where an operator calls the method of its base class.
    with pytest.raises(LoggedConfigError, match="2 errors") as error:
        logs_config_errors(execute)(None)
    assert [record.message for record in caplog.records] == ["form: 2 errors:", "nodes: 0", "stages: evil"]
    # Airflow logs every other exception with a traceback.
    assert isinstance(error.value, SystemExit) and error.value.code == 1
    assert DiagnosisRetryPolicy().evaluate(error.value, 1, 2).action is RetryAction.FAIL


def test_a_defect_keeps_its_traceback() -> None:
    @logs_config_errors
    def execute() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError) as error:
        execute()
    assert not isinstance(error.value, SystemExit)
