"""Provide one task with a store in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_bridge.task_state import TaskState


class Store(dict[str, Any]):
    """State store that takes JSON values only, as Airflow's does."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


@pytest.fixture
def task() -> TaskState:
    """Return the first try of a task."""
    return TaskState("d", "r", "t", -1, try_number=1, max_tries=2, clear_number=0, store=Store())
