"""Attempts of a task: numbers, clears, excluded nodes, and the choice to resume."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_bridge.slurm import attempts
from llm_bridge.slurm.attempts import Attempt, next_attempt, should_resume
from llm_bridge.slurm.status import JobInfo
from llm_bridge.task_state import TaskState


def cleared(task: TaskState) -> TaskState:
    return replace(task, clear_number=task.clear_number + 1, max_tries=task.max_tries + 2)


@pytest.fixture
def first(task: TaskState) -> Attempt:
    return next_attempt(task, "/w/d/r/t", None)


def test_the_first_attempt_has_number_1_and_the_tasks_job_name(task: TaskState, first: Attempt) -> None:
    assert (first.number, first.directory, first.key) == (1, "/w/d/r/t/attempt-1", task.job_name(1))
    assert first.is_first and not first.over


def test_a_stored_attempt_is_loaded_unchanged(task: TaskState, first: Attempt) -> None:
    assert attempts.load(task) is None
    stored = replace(first, job_id="7", exclude=("n1", "n2"))
    stored.save(task)
    assert attempts.load(task) == stored


def test_a_retry_is_a_later_attempt_and_not_a_first_one(task: TaskState, first: Attempt) -> None:
    second = next_attempt(task, "/w/d/r/t", replace(first, job_id="7", exclude=("n1",)))
    assert (second.number, second.is_first, second.exclude) == (2, False, ("n1",))


def test_the_attempt_after_one_that_got_no_job_is_still_a_first_one(task: TaskState, first: Attempt) -> None:
    assert next_attempt(task, "/w/d/r/t", first).is_first


def test_a_cleared_task_starts_a_first_attempt_with_all_nodes(task: TaskState, first: Attempt) -> None:
    last = replace(first, job_id="7", exclude=("n1",))
    after_clear = next_attempt(cleared(task), "/w/d/r/t", last)
    assert (after_clear.number, after_clear.is_first, after_clear.exclude) == (2, True, ())
    assert last.was_cleared(cleared(task)) and not last.was_cleared(task)


def test_a_clear_of_another_task_of_the_run_is_no_clear_of_this_one(task: TaskState, first: Attempt) -> None:
    assert not first.was_cleared(replace(task, clear_number=1))


def test_an_ended_job_and_its_bad_nodes_are_stored_once(task: TaskState, first: Attempt) -> None:
    replace(first, job_id="7", exclude=("n1",)).save(task)
    attempts.mark_ended(task, "8", ["n9"])
    last = attempts.load(task)
    assert last and not last.over and last.exclude == ("n1",), "8 is not its job"
    attempts.mark_ended(task, "7", ["n2", "n1"])
    last = attempts.load(task)
    assert last and last.over and last.exclude == ("n1", "n2")


def test_nodes_that_failed_under_another_tasks_job_are_excluded_from_the_first_attempt(
    task: TaskState,
) -> None:
    attempts.exclude_nodes(task, ["n1"])
    attempts.exclude_nodes(task, ["n1", "n2"])
    last = attempts.load(task)
    assert last and last.number == 0 and not should_resume(last, None, service=False)
    after = next_attempt(task, "/w/d/r/t", last)
    assert (after.number, after.exclude, after.is_first) == (1, ("n1", "n2"), True)


@pytest.mark.parametrize(
    ("state", "service", "resumes"),
    [
        (None, False, True),
        ("RUNNING", False, True),
        ("PENDING", True, True),
        ("NEW_STATE", False, True),
        ("COMPLETED", False, True),
        ("COMPLETED", True, False),
        ("FAILED", False, False),
    ],
)
def test_an_attempt_is_resumed_unless_its_job_has_failed_or_is_of_no_more_use(
    first: Attempt, state: str | None, service: bool, resumes: bool
) -> None:
    info = JobInfo("7", state) if state else None
    assert should_resume(first, info, service=service) is resumes
    completed = state == "COMPLETED" and not service
    assert should_resume(replace(first, over=True), info, service=service) is completed
