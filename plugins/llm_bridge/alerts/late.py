"""A run that takes too long: Airflow's Deadline Alerts, one a DAG."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from asgiref.sync import sync_to_async

from llm_bridge.alerts.channels import tell
from llm_bridge.alerts.config import load_alerts
from llm_bridge.alerts.message import Message, page

log = logging.getLogger(__name__)

OVER = {"success", "failed"}
# Tasks in these states are what a run waits for.
AT_WORK = {"scheduled", "queued", "running", "deferred", "up_for_retry", "up_for_reschedule", "restarting"}


def deadline(dag_id: str) -> DeadlineAlert | None:
    """What to give a DAG as its ``deadline``; None where ``late_after_hours`` does not name it.

    Counts from when the run was queued, and anew when it is cleared.

    :raises ConfigError: include/alerts.yaml is wrong.
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
    """Tell it. Airflow calls this in the triggerer once the deadline of a run has passed.

    :param context: ``{"dag_run": {...}}``, as the API describes a run (Airflow 3.3.2, ``Deadline.handle_miss``).
    """
    run = context["dag_run"]
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    # Airflow drops the deadline of a run that succeeds in time, but not of one that fails: that has been told.
    if run["state"] in OVER:
        log.info("run %s of %s is over (%s): its deadline tells nothing new", run_id, dag_id, run["state"])
        return
    facts = [
        ("Run", run_id),
        ("Queued", run.get("queued_at")),
        ("Limit", f"{hours:g} h (late_after_hours in include/alerts.yaml)"),
        ("At work", ", ".join(await _at_work(dag_id, run_id))),
        ("Next", "nothing is cancelled: the run goes on"),
    ]
    message = Message.of(
        "late", f"{dag_id}: not done after {hours:g} h", facts, links=[("Run", page(dag_id, run_id))]
    )
    await asyncio.to_thread(tell, message, await asyncio.to_thread(load_alerts))


async def _at_work(dag_id: str, run_id: str) -> list[str]:
    """What the run waits for; empty when Airflow cannot say."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        found = await sync_to_async(RuntimeTaskInstance.get_task_states)(dag_id=dag_id, run_ids=[run_id])
    except Exception as error:  # the alert matters more than this line of it
        log.warning("the states of run %s of %s cannot be asked: %s", run_id, dag_id, error)
        return []
    states = {task: str(getattr(state, "value", state)) for task, state in found.get(run_id, {}).items()}
    return [f"{task} ({state})" for task, state in states.items() if state in AT_WORK]
