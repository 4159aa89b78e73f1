"""When a task's end is told: Airflow's callbacks, and what keeps one failure to one alert.

A failed task is told by itself. Tasks that fell with it (``upstream_failed``) have no callback in Airflow; a teardown
that fails after another task and the run's last task, which fails because another one did, are not told again.
A job that was ended because it hung is told here, by what became of its task; one that goes on is told from the trigger
(``slurm.hang``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from llm_bridge.alerts import contents
from llm_bridge.alerts.channels import tell
from llm_bridge.alerts.config import load_alerts

log = logging.getLogger(__name__)

# In the last task's task_state_store, which outlives retry and clear: this run has failed before.
STORE_KEY = "llm_bridge_run_failed"
# Runs that nobody has started by hand.
SCHEDULED = {"scheduled", "backfill", "asset_triggered"}

# Keyword arguments of an operator.
Callbacks = dict[str, Any]


def on_failure() -> list[Callable[[Any], None]]:
    """Callbacks for a task's ``on_failure_callback``; empty when no channel is set up.

    :raises ConfigError: include/alerts.yaml is wrong.
    """
    return [] if load_alerts().silent else [failed]


def for_tasks() -> Callbacks:
    """Arguments for a DAG's ``default_args``: each failure is told once.

    :raises ConfigError: include/alerts.yaml is wrong.
    """
    alerts = load_alerts()
    return {
        "on_failure_callback": on_failure(),
        "on_retry_callback": [] if alerts.silent else [retried],
    }


def for_last_task() -> Callbacks:
    """Arguments for the task that comes last and fails if any other did: recovery and success are told by it.

    :raises ConfigError: include/alerts.yaml is wrong.
    """
    alerts = load_alerts()
    tells = not alerts.silent and (alerts.recoveries or alerts.successes != "none")
    return {
        "on_failure_callback": [run_failed] if tells else [],
        "on_retry_callback": [],
        "on_success_callback": [run_succeeded] if tells else [],
    }


def failed(context: Any) -> None:
    """A task has failed for good."""
    if other := _failed_before_teardown(context):
        log.warning("no alert of its own: the failure of %s has been told", ", ".join(other))
        return
    tell(contents.of_failure(context, "failure"), load_alerts())


def retried(context: Any) -> None:
    """A task has failed and is tried again: told with ``retries: true``, and always of a job that hung."""
    alerts = load_alerts()
    if contents.ended_for_hanging(context):
        tell(contents.of_failure(context, "hang"), alerts)
    elif alerts.retries:
        tell(contents.of_failure(context, "retry"), alerts)


def run_failed(context: Any) -> None:
    """The run has failed, and the task that failed has told it: remember that, for when the run recovers."""
    context["task_state_store"].set(STORE_KEY, contents.now())


def run_succeeded(context: Any) -> None:
    """The run has succeeded: after a failure that is a recovery."""
    alerts = load_alerts()
    before = _failed_before(context)
    if before and alerts.recoveries:
        tell(contents.of_success(context, "recovery", before), alerts)
    elif alerts.successes == "all" or (alerts.successes == "scheduled" and _is_scheduled(context)):
        tell(contents.of_success(context, "success"), alerts)


def _failed_before(context: Any) -> str:
    """What this success is the recovery from, in words; empty when it is from nothing.

    This run's own failure before it was cleared (a backfill that reprocesses failed runs clears them, too) or, of a
    scheduled run, the failure of the run before it. Airflow 3.4 will forget a task's store when only some tasks of
    the run are cleared (airflow#72100): such a recovery is then told as a success.
    """
    store = context["task_state_store"]
    if since := store.get(STORE_KEY):
        store.delete(STORE_KEY)
        return f"this run had failed on {since} and was cleared"
    if _is_scheduled(context):
        previous = context["ti"].get_previous_dagrun()
        if previous is not None and _text(previous.state) == "failed":
            return f"the run before it had failed: {previous.run_id}"
    return ""


def _is_scheduled(context: Any) -> bool:
    return _text(getattr(context["dag_run"], "run_type", "")) in SCHEDULED


def _failed_before_teardown(context: Any) -> list[str]:
    """Of a teardown, the tasks of its run that failed before it."""
    ti = context["ti"]
    if not getattr(context.get("task"), "is_teardown", False):
        return []
    try:
        found = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
    except Exception as error:  # in the DAG processor, say: rather told twice than never
        log.warning("the states of the run's other tasks cannot be asked: %s", error)
        return []
    return [task for task, state in found.items() if task != ti.task_id and _text(state) == "failed"]


def _text(state: Any) -> str:
    """str() of an enumeration is its name."""
    return str(getattr(state, "value", state))
