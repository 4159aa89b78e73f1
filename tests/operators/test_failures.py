"""Failures that are caused for real: what is said of them, what follows, and what it costs in tries."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import TaskDeferred

from benchmarks.failures_report import causes
from benchmarks.failures_report.causes import BY_NAME, CAUSES, Cause
from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.failures.kinds import Action
from llm_bridge.slurm.operators import SlurmSubmitOperator

RUN = "failures"
STOPS = [cause for cause in CAUSES if cause.action is not Action.CONTINUE]
GOES_ON = [cause for cause in CAUSES if cause.action is Action.CONTINUE]


@pytest.fixture(scope="module", autouse=True)
def disk(slurm: Any) -> Iterator[None]:
    """A small disk; afterwards the nodes are free again for the tests of other files."""
    causes.small_disk(slurm)
    yield
    until = time.monotonic() + 30
    while slurm.run("login", ["squeue", "-h"], user="svc").stdout.strip() and time.monotonic() < until:
        time.sleep(0.5)


def operator(cause: Cause, slurm: Any) -> SlurmSubmitOperator:
    return SlurmSubmitOperator(task_id="t", job=cause.job(slurm.workspace, "test", RUN), retries=2)


def follow(task: Any, made: SlurmSubmitOperator, meddle: Callable[[int, str], None]) -> Any:
    """Execute to the end; ``meddle(n, job id)`` is called while the n-th job is followed."""
    step, number = functools.partial(made.execute, task.context), 0
    while True:
        try:
            return step()
        except TaskDeferred as deferred:
            number += 1
            event = asyncio.run(_with(deferred.trigger, functools.partial(meddle, number)))
            step = functools.partial(getattr(made, deferred.method_name), task.context, event)


async def _with(trigger: Any, meddle: Callable[[str], None]) -> Any:
    outcome = asyncio.create_task(trigger.outcome())
    await asyncio.to_thread(meddle, trigger.job_id)
    return await asyncio.wait_for(outcome, 90)


@pytest.mark.parametrize("cause", STOPS, ids=lambda cause: cause.name)
def test_a_failure_is_named_with_its_evidence_and_its_retries_are_kept_where_they_cannot_help(
    cause: Cause, slurm: Any, new_task: Any
) -> None:
    task, made = new_task(f"fail-{cause.name}"), operator(cause, slurm)

    def meddle(number: int, job_id: str) -> None:
        if cause.meddle:
            causes.wait_until_running(slurm, job_id)
            cause.meddle(slurm, job_id)

    with pytest.raises(SlurmJobFailed) as caught:
        follow(task, made, meddle)
    found = caught.value.diagnosis
    assert found and found.kind == cause.kind, str(caught.value)
    assert cause.evidence in found.evidence
    assert (found.attempt, found.of) == (1, 3)
    assert task.xcoms["diagnosis"] == found.as_dict()
    assert found.text() in str(caught.value)
    assert made.retry_policy
    follows = made.retry_policy.evaluate(caught.value, 1, 2).action
    assert follows is (RetryAction.FAIL if cause.action is Action.STOP else RetryAction.RETRY)


@pytest.mark.parametrize("cause", GOES_ON, ids=lambda cause: cause.name)
def test_what_is_not_the_trainings_fault_goes_on_within_the_try_from_its_newest_checkpoint(
    cause: Cause, slurm: Any, new_task: Any, logged: Any
) -> None:
    task = new_task(f"fail-{cause.name}")

    def meddle(number: int, job_id: str) -> None:
        if number == 1:
            causes.wait_for_step(slurm.workspace, RUN, cause.name, causes.SAVED)
            assert cause.meddle
            cause.meddle(slurm, job_id)

    try:
        done = follow(task, operator(cause, slurm), meddle)
    finally:
        if cause.mend:
            cause.mend(slurm)
    assert done["state"] == "COMPLETED" and done["directory"].endswith("/attempt-2")
    assert task.ti.try_number == 1, "within the try"
    found = task.xcoms["diagnosis"]
    assert found["kind"] == cause.kind and cause.evidence in found["evidence"]
    assert found["step"] >= causes.SAVED and found["gpu_hours"] is None
    lines = logged()
    assert "going on from step 0" in lines and any(
        line.startswith("going on from step ") and line != "going on from step 0" for line in lines
    )
    assert any(f"goes on from step {found['step']} within this try" in line for line in lines)
    if cause.kind == "node_failure":
        bad = found["node"]
        assert bad in ("n1", "n2", "n3", "n4")
        assert task.store.values["llm_bridge_attempt"]["exclude"] == [bad]


def test_a_node_that_fails_under_a_job_which_slurm_starts_anew_is_no_failure(
    slurm: Any, new_task: Any, logged: Any
) -> None:
    cause = BY_NAME["node_off"]
    job = cause.job(slurm.workspace, "test", "failures-requeued")
    job = job.model_copy(update={"resources": job.resources.model_copy(update={"options": {}})})
    task = new_task("fail-requeued")

    def meddle(number: int, job_id: str) -> None:
        causes.wait_for_step(slurm.workspace, "failures-requeued", cause.name, causes.SAVED)
        causes.power_off(slurm, job_id)

    try:
        done = follow(task, SlurmSubmitOperator(task_id="t", job=job), meddle)
    finally:
        causes.power_on_all(slurm)
    assert done["state"] == "COMPLETED" and done["directory"].endswith("/attempt-1")
    assert "diagnosis" not in task.xcoms


def test_two_attempts_in_a_row_without_a_new_checkpoint_end_it_although_tries_are_left(
    slurm: Any, new_task: Any
) -> None:
    """It fails by itself before it has saved anything, twice."""
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


def test_a_training_that_is_preempted_before_it_saves_keeps_its_tries_but_does_not_go_on_for_ever(
    slurm: Any, new_task: Any
) -> None:
    cause = causes.replace_steps(BY_NAME["preempted"], 1000, save_freq=1000, name="preempted_idle")
    task, made = new_task("fail-always-preempted"), operator(cause, slurm)
    seen: list[int] = []

    def meddle(number: int, job_id: str) -> None:
        seen.append(number)
        causes.wait_until_running(slurm, job_id)
        assert cause.meddle
        cause.meddle(slurm, job_id)

    with pytest.raises(SlurmJobFailed, match="5 jobs in a row were lost before a new complete") as caught:
        follow(task, made, meddle)
    assert seen == [1, 2, 3, 4, 5] and caught.value.diagnosis and caught.value.diagnosis.kind == "preempted"
    assert made.retry_policy
    assert made.retry_policy.evaluate(caught.value, 1, 2).action is RetryAction.FAIL
