"""Stand-ins for Airflow's parts that operators use: a task's context, its store, and the triggerer.

Slurm, Ray, the login node and the operators are real where this is used.
"""

# Airflow must not be imported at the top: the import reads AIRFLOW_HOME, which a report sets before.
from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

# Maximum wait for a trigger's event.
MAX_EVENT_SECONDS = 180.0
# The delay before an event avoids a race in Airflow, which is not part of these tests.
MIN_EVENT_DELAY = "llm_bridge.triggers.base.MIN_EVENT_DELAY_SECONDS"

# Called with the number of the deferral (1, 2, ...) and its trigger, while the trigger runs.
Meddle = Callable[[int, Any], None]


@contextmanager
def events_at_once() -> Iterator[None]:
    """Let triggers fire without their minimum delay."""
    with patch(MIN_EVENT_DELAY, 0.0):
        yield


class Store(dict[str, Any]):
    """Stand-in for Airflow's ``task_state_store``, which needs a supervisor; tests/e2e uses the real one."""

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        """Store a value, which must be JSON as for the real store; nothing expires here."""
        self[key] = json.loads(json.dumps(value))
        assert self[key] == value, "the real store takes JSON values only"


class Task:
    """Task instance that can be run, retried and cleared: the parts of its context that operators read.

    Args:
        task_id: Id of the task.
        dag_id: Id of the DAG.
        run_id: Id of the run.
        retries: Number of retries.
        known: Whether triggers have their ``task_instance``, as in the triggerer.

    Attributes:
        pushed: Every XCom, the oldest first: (key, value).
    """

    def __init__(
        self,
        task_id: str,
        *,
        dag_id: str = "tests",
        run_id: str = "run",
        retries: int = 2,
        known: bool = False,
    ) -> None:
        self.store = Store()
        self.clear_number = 0
        self.known = known
        self.pushed: list[tuple[str, Any]] = []
        self.ti = SimpleNamespace(
            id=str(uuid.uuid4()),
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=-1,
            try_number=1,
            max_tries=retries,
            log_url=f"http://localhost:8080/dags/{dag_id}/runs/{run_id}/tasks/{task_id}",
            xcom_push=lambda key, value: self.pushed.append((key, value)),
            xcom_pull=lambda *, task_ids, key, map_indexes=None: self.xcoms.get(key),
        )

    @property
    def xcoms(self) -> dict[str, Any]:
        """Newest XCom of each key."""
        return dict(self.pushed)

    @property
    def context(self) -> Any:
        """Context for an operator."""
        from airflow.sdk.execution_time.context import OutletEventAccessors

        run = SimpleNamespace(clear_number=self.clear_number, run_type="manual")
        return {
            "ti": self.ti,
            "dag_run": run,
            "task_state_store": self.store,
            "outlet_events": OutletEventAccessors(),
        }

    def clear(self) -> None:
        """Change run and task instance as a user's clear does (airflow.models.taskinstance)."""
        self.clear_number += 1
        self.ti.max_tries += 1
        self.ti.try_number += 1

    def retry(self) -> None:
        """Begin the next try."""
        self.ti.try_number += 1

    def start(self, operator: Any) -> Any:
        """Execute up to the first deferral and return its trigger."""
        from airflow.sdk.exceptions import TaskDeferred

        try:
            result = operator.execute(self.context)
        except TaskDeferred as deferred:
            return deferred.trigger
        raise AssertionError(f"not deferred; it returned {result!r}")

    def run(self, operator: Any, meddle: Meddle | None = None, until: str | None = None) -> Any:
        """Execute to the end, triggers included, and return the task's result.

        Args:
            operator: The operator to execute.
            meddle: Called during each deferral, to act on the job.
            until: Stop at the deferral whose method this is, and return its trigger.
        """
        from airflow.sdk.exceptions import TaskDeferred

        step, number = functools.partial(operator.execute, self.context), 0
        while True:
            try:
                return step()
            except TaskDeferred as deferred:
                if until and deferred.method_name == until:
                    return deferred.trigger
                number += 1
                if self.known:
                    deferred.trigger.task_instance = SimpleNamespace(**vars(self.ti))
                event = asyncio.run(_event(deferred.trigger, number, meddle))
                step = functools.partial(getattr(operator, deferred.method_name), self.context, event)

    def until(self, operator: Any, method: str) -> Any:
        """Execute up to the deferral that resumes in ``method`` and return its trigger."""
        return self.run(operator, until=method)


async def _event(trigger: Any, number: int, meddle: Meddle | None) -> Any:
    first = asyncio.create_task(anext(trigger.run()))
    if meddle:
        await asyncio.to_thread(meddle, number, trigger)
    return (await asyncio.wait_for(first, MAX_EVENT_SECONDS)).payload
