"""The attempts of a task that the run page shows: they outlive retries and clears."""

from __future__ import annotations

import json
from typing import Any

from llm_bridge.diagnosis.report import titled
from llm_bridge.monitoring import history
from llm_bridge.task_state import TaskState
from testing.task_context import Store


def task(store: Store, try_number: int = 1) -> TaskState:
    return TaskState("d", "r", "sft.train", -1, try_number, 2, 0, store)


def submit(state: TaskState, number: int) -> str:
    directory = f"/w/sft/attempt-{number}"
    history.submitted(state, directory, name=f"Slurm job {number}", job_id=str(number), gpus=8, kind="slurm")
    return directory


def test_an_attempt_that_a_later_try_finds_again_is_recorded_once() -> None:
    store = Store()
    submit(task(store), 1)
    before = history.load(task(store))
    submit(task(store, 2), 1)
    assert history.load(task(store, 2)) == before


def test_a_failed_attempt_keeps_its_times_and_its_diagnosis_beside_the_next_one() -> None:
    store = Store()
    first = submit(task(store), 1)
    live = {"directory": first, "state": "FAILED", "started": 5.0, "ended": 9.0, "curves": {}}
    history.ended(task(store), first, result="failed", live=live, diagnosis=titled("unknown", "boom"))
    submit(task(store, 2), 2)
    failed, running = history.load(task(store, 2))
    assert (failed["result"], failed["ended"], failed["diagnosis"]["evidence"]) == ("failed", 9.0, "boom")
    assert "result" not in running and running["try_number"] == 2


def test_what_the_trigger_of_another_attempt_has_stored_is_not_taken() -> None:
    store = Store()
    directory = submit(task(store), 1)
    history.ended(task(store), directory, result="success", live={"directory": "/other", "ended": 3.0})
    assert history.load(task(store))[0]["ended"] > 1000


def test_curves_are_stored_in_parts_below_the_limit_of_a_value() -> None:
    store = Store()
    directory = submit(task(store), 1)
    curves = {f"c{n}": {"x": list(range(1000)), "y": [0.12345] * 1000, "stride": 1} for n in range(40)}
    history.ended(task(store), directory, result="success", live={"directory": directory, "curves": curves})
    keys = history.load(task(store))[0]["curves"]
    assert len(keys) > 1
    assert all(len(json.dumps(store[key])) < 65_000 for key in keys)
    merged: dict[str, Any] = {}
    for key in keys:
        assert store[key]["directory"] == directory
        merged |= store[key]["curves"]
    assert merged == curves


def test_a_task_with_countless_attempts_keeps_the_newest() -> None:
    store = Store()
    for number in range(1, 200):
        directory = submit(task(store), number)
        history.ended(task(store), directory, result="failed", diagnosis=titled("unknown", "x" * 3000))
    attempts = history.load(task(store))
    assert attempts[-1]["directory"] == directory
    assert len(attempts) <= history.MAX_ATTEMPTS
    assert len(json.dumps(store[history.STORE_KEY])) < 65_000
