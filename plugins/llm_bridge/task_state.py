"""One Airflow task instance as submission and diagnosis need it: identity, tries, and state store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from llm_bridge.naming import job_key


class StateStore(Protocol):
    """Airflow's ``task_state_store``: JSON values that outlive retries and (in Airflow 3.3.2) clears."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of ``key``; ``default`` if there is none."""

    def set(self, key: str, value: Any) -> None:
        """Store ``value``: JSON values only, Airflow refuses a tuple."""


@dataclass(frozen=True)
class TaskState:
    """One task instance.

    A clear increments the run's ``clear_number`` and, for the cleared tasks alone, raises ``max_tries``
    (``clear_task_instances``): only both together show that this task was cleared, and not another one of its run.

    Attributes:
        dag_id: The DAG.
        run_id: The run.
        task_id: The task.
        map_index: -1 for a task that is not mapped.
        try_number: 1 for the first try.
        max_tries: One less than the number of tries.
        clear_number: Number of times that the run, or part of it, was cleared.
        store: The task's state store.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    max_tries: int
    clear_number: int
    store: StateStore

    @classmethod
    def from_context(cls, context: Any) -> TaskState:
        """Return the state of the task that an Airflow context belongs to."""
        ti = context["ti"]
        clear_number = getattr(context["dag_run"], "clear_number", 0) or 0
        return cls(
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=ti.map_index,
            try_number=ti.try_number,
            max_tries=ti.max_tries,
            clear_number=clear_number,
            store=context["task_state_store"],
        )

    def job_name(self, attempt: int, suffix: str = "") -> str:
        """Return the name of one submission, in Slurm and in Ray.

        Args:
            attempt: Number of the attempt, from 1.
            suffix: Appended to the task's id, for a second job of the same task.
        """
        return job_key(self.dag_id, self.run_id, f"{self.task_id}{suffix}", self.map_index, attempt)

    def was_cleared_since(self, clear_number: int, max_tries: int) -> bool:
        """Return whether this task was cleared after the two values were stored.

        Args:
            clear_number: The stored one.
            max_tries: The stored one.
        """
        return clear_number != self.clear_number and max_tries != self.max_tries

    @property
    def tries_left(self) -> bool:
        """Return whether Airflow has another try for this task."""
        return self.try_number <= self.max_tries

    @property
    def owner(self) -> dict[str, Any]:
        """Identity of the task, as in an attempt's OWNER file."""
        return {
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "map_index": self.map_index,
        }
