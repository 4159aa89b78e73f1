"""Failures that are caused for real: their diagnosis, the action that follows, and the retries that it uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from llm_bridge.diagnosis.classes import Action
from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.operators.slurm import SlurmSubmitOperator
from testing import causes
from testing.causes import BY_NAME, CAUSES, Cause

RUN = "failures"
STOPS = [cause for cause in CAUSES if cause.action is not Action.CONTINUE]
CONTINUES = [cause for cause in CAUSES if cause.action is Action.CONTINUE]


@pytest.fixture(scope="module", autouse=True)
def disk(slurm: Any) -> Iterator[None]:
    """Mount a small disk; at the end, wait until the nodes are free for the tests of other files."""
    causes.small_disk(slurm)
    yield
    until = time.monotonic() + 30
    while slurm.run("login", ["squeue", "-h"], user="svc").stdout.strip() and time.monotonic() < until:
        time.sleep(0.5)


def operator(cause: Cause, slurm: Any) -> SlurmSubmitOperator:
    return SlurmSubmitOperator(task_id="t", job=cause.job(slurm.workspace, "test", RUN), retries=2)


@pytest.mark.parametrize("cause", STOPS, ids=lambda cause: cause.name)
def test_a_failure_is_diagnosed_with_its_evidence_and_not_retried_if_a_retry_cannot_help(
    cause: Cause, slurm: Any, new_task: Any
) -> None:
    task, made = new_task(f"fail-{cause.name}"), operator(cause, slurm)

    def meddle(number: int, trigger: Any) -> None:
        if cause.meddle:
            causes.wait_until_running(slurm, trigger.job_id)
            cause.meddle(slurm, trigger.job_id)

    with pytest.raises(SlurmJobFailed) as caught:
        task.run(made, meddle)
    found = caught.value.diagnosis
    assert found and found.kind == cause.kind, str(caught.value)
    assert cause.evidence in found.evidence
    assert (found.try_number, found.max_tries) == (1, 3)
    assert task.xcoms["diagnosis"] == found.as_dict()
    assert found.text() in str(caught.value)
    assert made.retry_policy
    follows = made.retry_policy.evaluate(caught.value, 1, 2).action
    assert follows is (RetryAction.FAIL if cause.action is Action.STOP else RetryAction.RETRY)


@pytest.mark.parametrize("cause", CONTINUES, ids=lambda cause: cause.name)
def test_a_training_that_is_interrupted_resumes_within_the_try_from_its_newest_checkpoint(
    cause: Cause, slurm: Any, new_task: Any, logged: Any
) -> None:
    task = new_task(f"fail-{cause.name}")

    def meddle(number: int, trigger: Any) -> None:
        if number == 1:
            causes.wait_for_step(slurm.workspace, RUN, cause.name, causes.SAVED)
            assert cause.meddle
            cause.meddle(slurm, trigger.job_id)

    try:
        done = task.run(operator(cause, slurm), meddle)
    finally:
        if cause.mend:
            cause.mend(slurm)
    assert done["state"] == "COMPLETED" and done["directory"].endswith("/attempt-2")
    assert task.ti.try_number == 1, "within the try"
    found = task.xcoms["diagnosis"]
    assert found["kind"] == cause.kind and cause.evidence in found["evidence"]
    assert found["step"] >= causes.SAVED and found["gpu_hours"] is None
    lines = logged()
    assert "resuming from step 0" in lines and any(
        line.startswith("resuming from step ") and line != "resuming from step 0" for line in lines
    )
    assert any(f"resumes from step {found['step']} within this try" in line for line in lines)
    if cause.kind == "node_failure":
        bad = found["node"]
        assert bad in ("n1", "n2", "n3", "n4")
        assert task.store["llm_bridge_attempt"]["exclude"] == [bad]


def test_a_node_failure_is_no_failure_of_a_job_that_slurm_requeues(
    slurm: Any, new_task: Any, logged: Any
) -> None:
    cause = BY_NAME["node_off"]
    job = cause.job(slurm.workspace, "test", "failures-requeued")
    job = job.model_copy(update={"resources": job.resources.model_copy(update={"options": {}})})
    task = new_task("fail-requeued")

    def meddle(number: int, trigger: Any) -> None:
        causes.wait_for_step(slurm.workspace, "failures-requeued", cause.name, causes.SAVED)
        causes.power_off(slurm, trigger.job_id)

    try:
        done = task.run(SlurmSubmitOperator(task_id="t", job=job), meddle)
    finally:
        causes.power_on_all(slurm)
    assert done["state"] == "COMPLETED" and done["directory"].endswith("/attempt-1")
    assert "diagnosis" not in task.xcoms


def test_a_task_is_not_retried_after_two_attempts_in_a_row_without_a_new_checkpoint(
    slurm: Any, new_task: Any
) -> None:
    """The job fails by itself twice, before its first checkpoint."""
    cause = replace(BY_NAME["preempted"], name="no_progress", settings={**causes.TRAINS, "seconds": "many"})
    task, made = new_task("fail-no-progress"), operator(cause, slurm)
    assert made.retry_policy
    for tried, action in ((1, RetryAction.RETRY), (2, RetryAction.FAIL)):
        with pytest.raises(SlurmJobFailed) as caught:
            task.run(made)
        assert caught.value.diagnosis and caught.value.diagnosis.kind == "unknown"
        assert made.retry_policy.evaluate(caught.value, tried, 2).action is action
        task.retry()
    assert "2 attempts in a row made no new complete checkpoint" in str(caught.value)


def test_a_training_that_is_always_preempted_before_its_first_checkpoint_stops_after_five_attempts(
    slurm: Any, new_task: Any
) -> None:
    cause = causes.replace_steps(BY_NAME["preempted"], 1000, save_freq=1000, name="preempted_idle")
    task, made = new_task("fail-always-preempted"), operator(cause, slurm)
    seen: list[int] = []

    def meddle(number: int, trigger: Any) -> None:
        seen.append(number)
        causes.wait_until_running(slurm, trigger.job_id)
        assert cause.meddle
        cause.meddle(slurm, trigger.job_id)

    with pytest.raises(
        SlurmJobFailed, match="5 attempts in a row were interrupted before a new complete"
    ) as caught:
        task.run(made, meddle)
    assert seen == [1, 2, 3, 4, 5] and caught.value.diagnosis and caught.value.diagnosis.kind == "preempted"
    assert made.retry_policy
    assert made.retry_policy.evaluate(caught.value, 1, 2).action is RetryAction.FAIL
