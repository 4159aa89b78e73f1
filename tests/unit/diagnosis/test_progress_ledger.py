"""Progress over the attempts of a task."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.diagnosis.progress_ledger import MAX_NAMES, STORE_KEY, ProgressLedger, count, load
from llm_bridge.task_state import TaskState
from testing.task_context import Task


def state(task: Task) -> TaskState:
    return TaskState.from_context(task.context)


@pytest.fixture
def task() -> Task:
    return Task("train", retries=2)


def test_progress_is_counted_over_attempts_and_each_attempt_once(task: Task) -> None:
    here = state(task)
    assert count(here, "a", before=None, step=None).no_progress == 1
    assert count(here, "a", before=None, step=None).no_progress == 1, (
        "the worker died after it had stored this"
    )
    assert count(here, "b", before=None, step=10) == load(here)
    assert load(here).no_progress == 0 and load(here).step == 10
    assert count(here, "c", before=10, step=10).no_progress == 1
    assert count(here, "d", before=10, step=10).no_progress == 2


def test_a_checkpoint_from_before_the_attempt_is_no_progress() -> None:
    assert count(state(Task("t")), "a", before=10, step=10).no_progress == 1
    assert count(state(Task("t")), "a", before=10, step=12).no_progress == 0


def test_an_interruption_is_counted_apart_until_the_next_checkpoint(task: Task) -> None:
    here = state(task)
    assert count(here, "a", before=None, step=None).interrupted == 0
    lost = count(here, "b", before=None, step=None, interrupted=True)
    assert (lost.no_progress, lost.interrupted) == (1, 1)
    saved = count(here, "c", before=None, step=5, interrupted=True)
    assert (saved.no_progress, saved.interrupted) == (0, 0)


def test_a_clear_of_the_task_resets_the_count(task: Task) -> None:
    count(state(task), "a", before=None, step=None)
    task.clear()
    assert load(state(task)) == ProgressLedger(clear_number=1, max_tries=3)


def test_a_clear_of_another_task_of_the_run_keeps_the_count(task: Task) -> None:
    counted = count(state(task), "a", before=None, step=None)
    task.clear_number += 1
    assert load(state(task)) == counted


def test_only_the_newest_names_are_stored(task: Task) -> None:
    for number in range(MAX_NAMES + 5):
        count(state(task), str(number), before=None, step=None)
    stored: Any = task.store[STORE_KEY]
    assert stored["ended"] == [str(number) for number in range(5, MAX_NAMES + 5)]
