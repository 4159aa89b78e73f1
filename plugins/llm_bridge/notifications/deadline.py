"""Deadline of a run: Airflow's Deadline Alerts, one per DAG."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from asgiref.sync import sync_to_async

from llm_bridge.notifications.channels import send_alert
from llm_bridge.notifications.config import load_alerts
from llm_bridge.notifications.message import Message, page_url

log = logging.getLogger(__name__)

# States of a run that has ended.
ENDED_STATES = {"success", "failed"}
# States of a task that has not ended and can.
ACTIVE_STATES = {
    "scheduled",
    "queued",
    "running",
    "deferred",
    "up_for_retry",
    "up_for_reschedule",
    "restarting",
}


def deadline_alert(dag_id: str) -> DeadlineAlert | None:
    """Return the ``deadline`` argument of a DAG; None where ``late_after_hours`` does not name the DAG.

    The time counts from when the run was queued, and starts again when the run is cleared.

    Args:
        dag_id: The DAG.

    Raises:
        ConfigError: include/alerts.yaml is wrong.
    """
    alerts = load_alerts()
    hours = alerts.late_after_hours.get(dag_id)
    if hours is None or alerts.silent:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=hours),
        callback=AsyncCallback(late, kwargs={"hours": hours}),
    )


async def late(hours: float, context: dict[str, Any]) -> None:
    """Send the alert about a late run. Airflow calls this in the triggerer once the deadline of a run has passed.

    Args:
        hours: The limit.
        context: ``{"dag_run": {...}}``, as the API describes a run (Airflow 3.3.2, ``Deadline.handle_miss``).
    """
    run = context["dag_run"]
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    # Airflow drops the deadline of a run that succeeds in time, but not of one that fails: that has had an alert.
    if run["state"] in ENDED_STATES:
        log.info("no deadline alert: run %s of DAG %s has ended (%s)", run_id, dag_id, run["state"])
        return
    waits = run["state"] == "queued"
    if waits and run.get("run_type") == "backfill":
        # All runs of a backfill are queued at once, and follow each other.
        log.info("no deadline alert: run %s of DAG %s waits for its turn in a backfill", run_id, dag_id)
        return
    facts = [
        ("Run", run_id),
        ("Queued", run.get("queued_at")),
        ("State", "queued: it has not begun, because another run of the DAG is active" if waits else ""),
        ("Limit", f"{hours:g} h (late_after_hours in include/alerts.yaml)"),
        ("Active tasks", ", ".join(await _active_tasks(dag_id, run_id))),
        ("Next", "nothing is cancelled: the run continues"),
    ]
    message = Message.build(
        "late", f"{dag_id}: not finished after {hours:g} h", facts, links=[("Run", page_url(dag_id, run_id))]
    )
    await asyncio.to_thread(send_alert, message, await asyncio.to_thread(load_alerts))


async def _active_tasks(dag_id: str, run_id: str) -> list[str]:
    """Return the tasks that the run waits for; empty when Airflow's API does not answer."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        found = await sync_to_async(RuntimeTaskInstance.get_task_states)(dag_id=dag_id, run_ids=[run_id])
    except Exception as error:  # the alert matters more than this line of it
        log.warning("cannot get the task states of run %s of DAG %s: %s", run_id, dag_id, error)
        return []
    states = {task: str(getattr(state, "value", state)) for task, state in found.get(run_id, {}).items()}
    return [f"{task} ({state})" for task, state in states.items() if state in ACTIVE_STATES]
