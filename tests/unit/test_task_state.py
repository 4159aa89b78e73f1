"""State of one task: identity, tries, and clears."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.naming import job_key
from llm_bridge.task_state import TaskState


@pytest.fixture
def store() -> Any:
    return object()


@pytest.fixture
def task(store: Any) -> TaskState:
    return TaskState("d", "r", "g.t", 3, try_number=2, max_tries=2, clear_number=1, store=store)


def context(store: Any, **dag_run: Any) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="g.t", map_index=3, try_number=2, max_tries=2)
    return {"ti": ti, "dag_run": SimpleNamespace(**dag_run), "task_state_store": store}


def test_a_context_becomes_the_state_of_its_task(store: Any, task: TaskState) -> None:
    assert TaskState.from_context(context(store, clear_number=1)) == task


@pytest.mark.parametrize("dag_run", [{}, {"clear_number": None}])
def test_a_run_that_was_never_cleared_has_the_number_0(store: Any, dag_run: dict[str, Any]) -> None:
    assert TaskState.from_context(context(store, **dag_run)).clear_number == 0


def test_job_names_differ_by_attempt_suffix_and_task(task: TaskState) -> None:
    assert task.job_name(2) == job_key("d", "r", "g.t", 3, 2)
    names = {
        task.job_name(1),
        task.job_name(2),
        task.job_name(1, ".then"),
        replace(task, run_id="s").job_name(1),
    }
    assert len(names) == 4


def test_only_both_counters_together_show_a_clear_of_this_task(task: TaskState) -> None:
    assert task.was_cleared_since(clear_number=0, max_tries=0)
    assert not task.was_cleared_since(clear_number=0, max_tries=2), "another task of the run was cleared"
    assert not task.was_cleared_since(clear_number=1, max_tries=0)


def test_the_last_try_has_none_left(task: TaskState) -> None:
    assert task.tries_left
    assert not replace(task, try_number=3).tries_left


def test_the_owner_identifies_the_task(task: TaskState) -> None:
    assert task.owner == {"dag_id": "d", "run_id": "r", "task_id": "g.t", "map_index": 3}
