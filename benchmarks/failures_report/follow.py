"""Follow one task to its end as Airflow does: its triggers, its tries, its callbacks."""

from __future__ import annotations

from typing import Any

from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowFailException

from testing.task_context import Meddle, Task


def follow(operator: Any, task: Task, meddle: Meddle | None) -> str:
    """Run all tries of a task; return "failed" or "succeeded". The operator's own callbacks send the alerts.

    Args:
        operator: The task's operator.
        task: Its context.
        meddle: Called in the first try only.
    """
    while True:
        try:
            task.run(operator, meddle)
            return "succeeded"
        except Exception as error:  # every exception of a task, as Airflow
            again = _is_tried_again(operator, task, error)
            for callback in operator.on_retry_callback if again else operator.on_failure_callback:
                callback({**task.context, "task": operator, "exception": error})
            if not again:
                return "failed"
        task.retry()  # without waiting for retry_delay
        meddle = None


def _is_tried_again(operator: Any, task: Task, error: Exception) -> bool:
    if task.ti.try_number > task.ti.max_tries or isinstance(error, AirflowFailException):
        return False
    decision = operator.retry_policy.evaluate(error, task.ti.try_number, task.ti.max_tries)
    return decision.action is not RetryAction.FAIL
