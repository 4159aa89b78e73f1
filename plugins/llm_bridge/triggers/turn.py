"""Trigger of a mapped task that waits until fewer of the instances before it are active."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from asgiref.sync import sync_to_async

from llm_bridge.triggers.base import TERMINAL, LlmBridgeTrigger


class TurnTrigger(LlmBridgeTrigger):
    """Trigger that fires when it is the turn of a mapped task.

    Airflow's own limit (``max_active_tis_per_dagrun``) does not count deferred tasks.

    Args:
        of_dag: The DAG.
        of_run: The run.
        of_task: The mapped task.
        index: Its map index.
        at_once: Number of instances that may be active.
        interval: Seconds between two queries.
    """

    def __init__(
        self, of_dag: str, of_run: str, of_task: str, index: int, at_once: int, interval: float = 10.0
    ) -> None:
        super().__init__()
        self.of_dag = of_dag
        self.of_run = of_run
        self.of_task = of_task
        self.index = index
        self.at_once = at_once
        self.interval = interval

    async def outcome(self) -> dict[str, Any]:
        """Wait for the turn."""
        while not await sync_to_async(self.is_turn)():
            await asyncio.sleep(self.interval)
        return {}

    def is_turn(self) -> bool:
        """Return True if it is the turn, by the states that Airflow's API reports."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states = RuntimeTaskInstance.get_task_states(
            dag_id=self.of_dag, task_ids=[self.of_task], run_ids=[self.of_run]
        )
        return is_turn(states.get(self.of_run, {}), self.of_task, self.index, self.at_once)


def is_turn(states: Mapping[str, Any], task_id: str, map_index: int, at_once: int) -> bool:
    """Return True if fewer than ``at_once`` of the instances before one have not ended.

    Of all instances that have had their turn, then at most ``at_once`` are active.

    Args:
        states: ``TASK_INDEX`` -> state, as Airflow's API returns them.
        task_id: The mapped task.
        map_index: Index of the instance.
        at_once: Number of instances that may be active.
    """
    before = [str(states.get(f"{task_id}_{index}")) for index in range(map_index)]
    return sum(state not in TERMINAL for state in before) < at_once
