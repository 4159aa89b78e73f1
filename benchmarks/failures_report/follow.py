"""Follow one task to its end as Airflow does: its triggers, its tries, its callbacks."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from benchmarks.stand_in import Task

# Nothing here takes so long.
MOST_SECONDS = 180.0

Meddle = Callable[[Any], None]


def follow(operator: Any, task: Task, meddle: Meddle | None) -> str:
    """Run all tries that it gets; "failed" or "succeeded". What failed is told by the operator's own callbacks.

    :param meddle: called with the first trigger while that follows its job.
    """
    while True:
        try:
            one_try(operator, task, meddle)
            return "succeeded"
        except Exception as error:  # as Airflow: whatever a task raises
            again = _is_tried_again(operator, task, error)
            for callback in operator.on_retry_callback if again else operator.on_failure_callback:
                callback({**task.context, "task": operator, "exception": error})
            if not again:
                return "failed"
        task.ti.try_number += 1  # without waiting for retry_delay
        meddle = None


def _is_tried_again(operator: Any, task: Task, error: Exception) -> bool:
    if task.ti.try_number > task.ti.max_tries or isinstance(error, AirflowFailException):
        return False
    decision = operator.retry_policy.evaluate(error, task.ti.try_number, task.ti.max_tries)
    return decision.action is not RetryAction.FAIL


def one_try(operator: Any, task: Task, meddle: Meddle | None = None) -> Any:
    """Execute, and go on from each deferral; what the task returns."""
    step = functools.partial(operator.execute, task.context)
    while True:
        try:
            return step()
        except TaskDeferred as deferred:
            deferred.trigger.task_instance = SimpleNamespace(**vars(task.ti))
            event = asyncio.run(_event(deferred.trigger, meddle))
            meddle = None
            step = functools.partial(getattr(operator, deferred.method_name), task.context, event)


async def _event(trigger: Any, meddle: Meddle | None) -> Any:
    first = asyncio.create_task(anext(trigger.run()))
    if meddle:
        await asyncio.to_thread(meddle, trigger)
    return (await asyncio.wait_for(first, MOST_SECONDS)).payload
