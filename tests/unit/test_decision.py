"""What follows a failure, and what the retry policy tells Airflow."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from llm_bridge.failures.decision import Circumstances, RetryByCause, decide, with_policy
from llm_bridge.failures.diagnosis import titled
from llm_bridge.failures.kinds import KINDS, Action
from llm_bridge.failures.ledger import Ledger, count, stored

TRAINING = Circumstances(trains=True, retry_delay=timedelta(seconds=60))


class Store(dict[str, Any]):
    def set(self, key: str, value: Any) -> None:
        self[key] = value


def context() -> Any:
    return {
        "ti": SimpleNamespace(max_tries=2),
        "dag_run": SimpleNamespace(clear_number=0),
        "task_state_store": Store(),
    }


FAIL_FAST = [
    *("host_oom", "cuda_oom", "bad_config", "environment", "missing_path", "checkpoint_incompatible"),
    *("disk_full", "token_refused", "cancelled"),
]


@pytest.mark.parametrize("kind", FAIL_FAST)
def test_what_would_fail_again_stops_at_once_although_retries_are_left(kind: str) -> None:
    decision = decide(titled(kind, "x"), Ledger(), TRAINING)
    assert decision.action is Action.STOP and decision.text.startswith("stops: ")
    error = SimpleNamespace(decision=decision)
    assert RetryByCause().evaluate(error, 1, 3).action is RetryAction.FAIL  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["forgotten", "preempted", "node_failure", "network", "unknown"])
def test_a_job_of_another_task_that_is_over_is_not_looked_at_again(kind: str) -> None:
    """A sensor's retry would follow the same job to the same end."""
    found = titled(kind, "x")
    assert decide(found, Ledger(), Circumstances()).action is not Action.STOP
    sensors = decide(found, Ledger(), Circumstances(can_continue=False, theirs=True))
    assert sensors.action is Action.STOP and "clear that one" in sensors.text


@pytest.mark.parametrize("kind", ["preempted", "time_limit", "node_failure"])
def test_what_is_not_the_trainings_fault_goes_on_within_the_try(kind: str) -> None:
    decision = decide(titled(kind, "x"), Ledger(step=40), TRAINING)
    assert decision.action is Action.CONTINUE and "from step 40" in decision.text


@pytest.mark.parametrize("kind", ["gpu_hardware", "network", "bad_node", "ray_bring_up"])
def test_with_a_node_to_blame_it_is_tried_again_at_once_without_it(kind: str) -> None:
    decision = decide(titled(kind, "x", node="n2, n3"), Ledger(), TRAINING)
    assert decision.nodes == ("n2", "n3") and "without n2, n3" in decision.text
    policy = RetryByCause().evaluate(SimpleNamespace(decision=decision), 1, 3)  # type: ignore[arg-type]
    assert policy.action is RetryAction.RETRY and policy.retry_delay == timedelta(seconds=5)


@pytest.mark.parametrize("kind", ["network", "ray_bring_up", "unknown", "hang"])
def test_without_a_node_it_waits_as_long_as_the_task_says(kind: str) -> None:
    decision = decide(titled(kind, "x"), Ledger(), TRAINING)
    assert (decision.delay, decision.nodes) == (None, ()) and "tries again in 60 s" in decision.text


def test_a_node_under_a_gpu_that_was_too_small_is_not_to_blame() -> None:
    assert decide(titled("cuda_oom", "x", node="n2"), Ledger(), TRAINING).nodes == ()


@pytest.mark.parametrize("kind", ["time_limit", "network", "unknown", "hang"])
def test_two_attempts_in_a_row_without_a_new_checkpoint_end_it(kind: str) -> None:
    assert decide(titled(kind, "x"), Ledger(stale=1), TRAINING).action is not Action.STOP
    decision = decide(titled(kind, "x"), Ledger(stale=2, step=40), TRAINING)
    assert decision.action is Action.STOP
    assert "2 attempts in a row made no new complete checkpoint (newest: step 40)" in decision.text


@pytest.mark.parametrize("kind", ["preempted", "node_failure"])
def test_what_was_taken_away_leaves_the_trainings_own_tries_alone(kind: str) -> None:
    """Lost three times before its first checkpoint, it still has both tries for a fault of its own."""
    here = context()
    for name in "abc":
        lost = count(here, name, before=None, step=None, taken=True)
        assert decide(titled(kind, "x"), lost, TRAINING).action is Action.CONTINUE
    fault = count(here, "d", before=None, step=None)
    assert (fault.stale, fault.taken) == (1, 3)
    assert decide(titled("network", "x"), fault, TRAINING).action is Action.LATER
    assert (
        decide(titled("network", "x"), count(here, "e", before=None, step=None), TRAINING).action
        is Action.STOP
    )
    assert count(here, "f", before=None, step=5, taken=True).taken == 0


def test_a_training_that_is_always_taken_away_before_it_saves_ends_with_what_to_change() -> None:
    assert decide(titled("preempted", "x"), Ledger(taken=4), TRAINING).action is Action.CONTINUE
    decision = decide(titled("preempted", "x"), Ledger(taken=5), TRAINING)
    assert decision.action is Action.STOP and "save_freq" in decision.text


def test_a_job_without_checkpoints_is_not_started_anew_against_its_time_limit_or_for_ever() -> None:
    plain = Circumstances()
    assert decide(titled("preempted", "x"), Ledger(taken=1), plain).action is Action.CONTINUE
    assert decide(titled("preempted", "x"), Ledger(taken=5), plain).action is Action.LATER
    assert decide(titled("time_limit", "x"), Ledger(stale=1), plain).action is Action.LATER


def test_the_jobs_own_last_word_stands() -> None:
    decision = decide(titled("preempted", "x"), Ledger(), Circumstances(trains=True, final=True))
    assert decision.action is Action.STOP


def test_the_last_try_is_told_as_the_last() -> None:
    decision = decide(titled("unknown", "x"), Ledger(), Circumstances(tries_left=False))
    assert decision.text.startswith("stops: no try is left")


def test_progress_is_counted_over_attempts_and_each_attempt_once() -> None:
    here = context()
    assert count(here, "a", before=None, step=None).stale == 1
    assert count(here, "a", before=None, step=None).stale == 1, "the worker died after writing it down"
    assert count(here, "b", before=None, step=10) == stored(here)
    assert stored(here).stale == 0 and stored(here).step == 10
    assert count(here, "c", before=10, step=10).stale == 1
    assert count(here, "d", before=10, step=10).stale == 2


def test_a_checkpoint_that_was_there_before_is_no_progress() -> None:
    assert count(context(), "a", before=10, step=10).stale == 1
    assert count(context(), "a", before=10, step=12).stale == 0


def test_a_clear_of_the_task_begins_the_count_anew() -> None:
    here = context()
    count(here, "a", before=None, step=None)
    here["dag_run"].clear_number, here["ti"].max_tries = 1, 3
    assert stored(here).stale == 0


def test_an_exception_of_another_kind_follows_the_tasks_own_settings() -> None:
    decision = RetryByCause().evaluate(ValueError("x"), 1, 3)
    assert decision.action is RetryAction.DEFAULT and "ValueError has no diagnosis" in str(decision.reason)


def test_a_users_own_policy_wins() -> None:
    own = RetryByCause()
    assert with_policy({"retry_policy": own})["retry_policy"] is own
    assert isinstance(with_policy({})["retry_policy"], RetryByCause)


def test_every_class_says_why_and_what_to_do() -> None:
    for kind in KINDS.values():
        assert kind.why and kind.advice and kind.title
