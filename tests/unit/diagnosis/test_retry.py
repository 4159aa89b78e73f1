"""The action that follows a failure."""

from __future__ import annotations

from datetime import timedelta

import pytest

from llm_bridge.diagnosis.classes import CLASSES, Action
from llm_bridge.diagnosis.progress_ledger import ProgressLedger, count
from llm_bridge.diagnosis.report import titled
from llm_bridge.diagnosis.retry import RetryContext, decide
from llm_bridge.task_state import TaskState
from testing.task_context import Task

TRAINING = RetryContext(trains=True, retry_delay=timedelta(seconds=60))
FAIL_FAST = [
    *("host_oom", "cuda_oom", "bad_config", "environment", "missing_path", "checkpoint_incompatible"),
    *("disk_full", "token_refused", "cancelled"),
]


@pytest.mark.parametrize("kind", FAIL_FAST)
def test_a_cause_that_a_retry_cannot_change_stops_although_retries_are_left(kind: str) -> None:
    decision = decide(titled(kind, "x"), ProgressLedger(), TRAINING)
    assert decision.action is Action.STOP and decision.text.startswith("no retry: ")


def test_no_other_class_stops_a_first_attempt() -> None:
    stopped = [
        kind
        for kind in CLASSES
        if decide(titled(kind, "x"), ProgressLedger(), TRAINING).action is Action.STOP
    ]
    assert sorted(stopped) == sorted(FAIL_FAST)


@pytest.mark.parametrize("kind", ["forgotten", "preempted", "node_failure", "network", "unknown"])
def test_an_ended_job_of_another_task_is_not_followed_again(kind: str) -> None:
    """A sensor's retry would follow the same job to the same end."""
    found = titled(kind, "x")
    assert decide(found, ProgressLedger(), RetryContext()).action is not Action.STOP
    sensors = decide(found, ProgressLedger(), RetryContext(can_continue=False, foreign_job=True))
    assert sensors.action is Action.STOP and "clear that one" in sensors.text


@pytest.mark.parametrize("kind", ["preempted", "time_limit", "node_failure"])
def test_a_training_that_is_not_at_fault_resumes_within_the_try(kind: str) -> None:
    decision = decide(titled(kind, "x"), ProgressLedger(step=40), TRAINING)
    assert decision.action is Action.CONTINUE and "resumes from step 40 within this try" in decision.text


def test_a_training_without_a_checkpoint_starts_again_within_the_try() -> None:
    decision = decide(titled("node_failure", "x", node="n2"), ProgressLedger(), TRAINING)
    assert decision.action is Action.CONTINUE and decision.nodes == ("n2",)
    assert decision.text.startswith(
        "starts again from its beginning within this try without n2, which uses no retry: "
    )


@pytest.mark.parametrize("kind", ["gpu_hardware", "network", "bad_node", "ray_bring_up"])
def test_with_a_node_at_fault_the_retry_comes_at_once_and_excludes_it(kind: str) -> None:
    decision = decide(titled(kind, "x", node="n2, n3"), ProgressLedger(), TRAINING)
    assert decision.nodes == ("n2", "n3")
    assert decision.text.startswith("retries at once without n2, n3: ")
    assert decision.delay == timedelta(seconds=5)


@pytest.mark.parametrize("kind", ["network", "ray_bring_up", "unknown", "hang"])
def test_without_a_node_at_fault_the_retry_waits_for_the_tasks_retry_delay(kind: str) -> None:
    decision = decide(titled(kind, "x"), ProgressLedger(), TRAINING)
    assert (decision.delay, decision.nodes) == (None, ()) and "retries in 60 s" in decision.text


def test_a_node_whose_gpu_was_too_small_is_not_excluded() -> None:
    assert decide(titled("cuda_oom", "x", node="n2"), ProgressLedger(), TRAINING).nodes == ()


@pytest.mark.parametrize("kind", ["time_limit", "network", "unknown", "hang"])
def test_two_attempts_in_a_row_without_a_new_checkpoint_stop_a_training(kind: str) -> None:
    assert decide(titled(kind, "x"), ProgressLedger(no_progress=1), TRAINING).action is not Action.STOP
    decision = decide(titled(kind, "x"), ProgressLedger(no_progress=2, step=40), TRAINING)
    assert decision.action is Action.STOP
    assert "2 attempts in a row made no new complete checkpoint (newest: step 40)" in decision.text
    never = decide(titled(kind, "x"), ProgressLedger(no_progress=2), TRAINING)
    assert "(newest: none)" in never.text


@pytest.mark.parametrize("kind", ["preempted", "node_failure"])
def test_interruptions_do_not_count_as_the_trainings_own_failures(kind: str) -> None:
    """Interrupted three times before its first checkpoint, it still has both attempts for a fault of its own."""
    here = TaskState.from_context(Task("t").context)
    for name in "abc":
        lost = count(here, name, before=None, step=None, interrupted=True)
        assert decide(titled(kind, "x"), lost, TRAINING).action is Action.CONTINUE
    fault = count(here, "d", before=None, step=None)
    assert (fault.no_progress, fault.interrupted) == (1, 3)
    assert decide(titled("network", "x"), fault, TRAINING).action is Action.LATER
    second = count(here, "e", before=None, step=None)
    assert decide(titled("network", "x"), second, TRAINING).action is Action.STOP
    assert count(here, "f", before=None, step=5, interrupted=True).interrupted == 0


def test_a_training_that_is_always_interrupted_before_it_saves_stops_with_the_setting_to_change() -> None:
    assert decide(titled("preempted", "x"), ProgressLedger(interrupted=4), TRAINING).action is Action.CONTINUE
    decision = decide(titled("preempted", "x"), ProgressLedger(interrupted=5), TRAINING)
    assert decision.action is Action.STOP and "lower trainer.save_freq" in decision.text


def test_a_job_without_checkpoints_does_not_start_again_after_its_time_limit_nor_for_ever() -> None:
    plain = RetryContext()
    assert decide(titled("preempted", "x"), ProgressLedger(interrupted=1), plain).action is Action.CONTINUE
    assert decide(titled("preempted", "x"), ProgressLedger(interrupted=5), plain).action is Action.LATER
    assert decide(titled("time_limit", "x"), ProgressLedger(no_progress=1), plain).action is Action.LATER


def test_an_operator_that_cannot_resubmit_leaves_the_retry_to_airflow() -> None:
    decision = decide(titled("preempted", "x"), ProgressLedger(), RetryContext(can_continue=False))
    assert decision.action is Action.LATER


def test_a_job_that_reports_that_a_retry_cannot_help_is_not_retried() -> None:
    decision = decide(titled("preempted", "x"), ProgressLedger(), RetryContext(trains=True, final=True))
    assert decision.action is Action.STOP


def test_after_the_last_try_the_text_says_so() -> None:
    decision = decide(titled("unknown", "x"), ProgressLedger(), RetryContext(tries_left=False))
    assert decision.text == "no retry left; clear the task to resume"
