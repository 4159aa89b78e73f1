"""Airflow callbacks that send an alert when a task ends, at most one for each failure.

A failed task sends its own alert. Tasks that failed with it (``upstream_failed``) have no callback in Airflow; a
teardown that fails after another task, and the run's last task, which fails because another one did, send none.
A job that was ended because it hung is reported here, with its task's end; a hanging job that runs on is reported by
the trigger (``monitoring.hang``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llm_bridge.notifications import content
from llm_bridge.notifications.channels import send_alert
from llm_bridge.notifications.config import load_alerts

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

# In the last task's task_state_store, which outlives retry and clear: this run has failed before.
STORE_KEY = "llm_bridge_run_failed"
# Types of runs that no user started by hand.
SCHEDULED = {"scheduled", "backfill", "asset_triggered"}

# Keyword arguments of an operator.
Callbacks = dict[str, Any]


def on_failure() -> list[Callable[[Any], None]]:
    """Return callbacks for a task's ``on_failure_callback``; empty when no channel is configured.

    Raises:
        ConfigError: include/alerts.yaml is wrong.
    """
    return [] if load_alerts().silent else [failed]


def for_tasks() -> Callbacks:
    """Return arguments for a DAG's ``default_args``: one alert for each failure.

    Raises:
        ConfigError: include/alerts.yaml is wrong.
    """
    alerts = load_alerts()
    return {
        "on_failure_callback": on_failure(),
        "on_retry_callback": [] if alerts.silent else [retried],
    }


def for_last_task() -> Callbacks:
    """Return arguments for the task that runs last and fails if any other did: it reports recovery and success.

    Raises:
        ConfigError: include/alerts.yaml is wrong.
    """
    alerts = load_alerts()
    notifies = not alerts.silent and (alerts.recoveries or alerts.successes != "none")
    return {
        "on_failure_callback": [run_failed] if notifies else [],
        "on_retry_callback": [],
        "on_success_callback": [run_succeeded] if notifies else [],
    }


def failed(context: Context) -> None:
    """Send the alert about a task that has failed and is not retried."""
    if other := _failed_before_teardown(context):
        log.warning("no alert for this teardown: the failure of %s has been reported", ", ".join(other))
        return
    send_alert(content.failure_message(context, "failure"), load_alerts())


def retried(context: Context) -> None:
    """Send the alert about a failed try that is retried: with ``retries: true``, and always for a job that hung."""
    alerts = load_alerts()
    if content.ended_for_hang(context):
        send_alert(content.failure_message(context, "hang"), alerts)
    elif alerts.retries:
        send_alert(content.failure_message(context, "retry"), alerts)


def run_failed(context: Context) -> None:
    """Remember that the run has failed, for when it recovers. The task that failed has sent the alert."""
    store: Any = context["task_state_store"]
    store.set(STORE_KEY, content.now())


def run_succeeded(context: Context) -> None:
    """Send the alert about a run that has succeeded; after a failure it is a recovery."""
    alerts = load_alerts()
    recovered_from = _earlier_failure(context)
    if recovered_from and alerts.recoveries:
        send_alert(content.success_message(context, "recovery", recovered_from), alerts)
    elif alerts.successes == "all" or (alerts.successes == "scheduled" and is_scheduled(context)):
        send_alert(content.success_message(context, "success"), alerts)


def _earlier_failure(context: Context) -> str:
    """Describe the failure that this success recovers from; empty when there is none.

    This run's own failure before it was cleared (a backfill that reprocesses failed runs clears them, too) or, for a
    scheduled run, the failure of the run before it. Airflow 3.4 will clear a task's store when only some tasks of the
    run are cleared (airflow#72100): such a recovery is then reported as a success.
    """
    store: Any = context["task_state_store"]
    if since := store.get(STORE_KEY):
        store.delete(STORE_KEY)
        return f"this run's failure at {since}; it was cleared since"
    if is_scheduled(context):
        ti: Any = context["ti"]
        previous = ti.get_previous_dagrun()
        if previous is not None and _text(previous.state) == "failed":
            return f"the failure of the previous run: {previous.run_id}"
    return ""


def is_scheduled(context: Context) -> bool:
    """Return True if no user started the run by hand."""
    return _text(getattr(context["dag_run"], "run_type", "")) in SCHEDULED


def _failed_before_teardown(context: Context) -> list[str]:
    """Return, for a teardown, the tasks of its run that failed before it."""
    ti: Any = context["ti"]
    if not getattr(context.get("task"), "is_teardown", False):
        return []
    try:
        found = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
    except Exception as error:  # in the DAG processor, for example: rather two alerts than none
        log.warning("cannot get the states of the run's other tasks; sending the alert anyway: %s", error)
        return []
    return [task for task, state in found.items() if task != ti.task_id and _text(state) == "failed"]


def _text(state: Any) -> str:
    """Return the value of an enumeration's member: its ``str()`` would be its name."""
    return str(getattr(state, "value", state))
