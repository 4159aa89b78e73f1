"""Alerts about a job that runs on, sent from the trigger that follows it: each once per attempt."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import Any

from llm_bridge.exceptions import ClusterUnavailable, LoginNodeUnreachable, WorkspaceNotWritable
from llm_bridge.notifications.channels import send_alert
from llm_bridge.notifications.config import load_alerts
from llm_bridge.notifications.content import now
from llm_bridge.notifications.message import Message, Occasion, page_url
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.transport import CommandFailed
from llm_bridge.slurm.batch_script import AttemptFiles
from llm_bridge.slurm.client import open_client

log = logging.getLogger(__name__)

# A triggerer is not killed for taking long, and neither is a worker in which the operator waits itself.
SEND_TIMEOUT_SECONDS = 60.0


async def notify_job(
    ti: Any,
    occasion: Occasion,
    what: str,
    facts: Iterable[tuple[str, Any]],
    *,
    cluster: str | None,
    directory: str | None,
    lines: Iterable[str] = (),
) -> None:
    """Send an alert, unless one for this occasion was already sent for this attempt. Never raises.

    A trigger has no callbacks and cannot write Airflow's state store, so a file in the attempt's directory on the
    cluster (:func:`attempt_dir.notified`) records the alert: any triggerer that follows the job later finds it. It is
    written after the alert was sent: a triggerer that dies in between causes a second alert rather than none.

    Args:
        ti: The task instance that waits, as the trigger has it; None outside of a triggerer.
        occasion: The reason for the alert.
        what: One sentence about what happened.
        facts: (label, value) pairs for the alert.
        cluster: Name of the cluster file; None where the job is not on a cluster of llm-bridge.
        directory: The attempt's, on the cluster; None where there is none, so that nothing is recorded.
        lines: Quoted in the alert.
    """
    try:
        alerts = await asyncio.to_thread(load_alerts)
        if alerts.silent or await _was_notified(cluster, directory, occasion):
            return
        message = Message.build(
            occasion,
            f"{ti.dag_id}: {ti.task_id}: {what}" if ti else what,
            [
                ("What", what),
                *facts,
                ("Try", ti.try_number if ti else None),
                ("Run", ti.run_id if ti else None),
            ],
            lines=lines,
            links=[*_links(ti), ("On the cluster", directory)],
        )
        await asyncio.to_thread(send_alert, message, alerts, SEND_TIMEOUT_SECONDS)
        await write_attempt_file(cluster, directory, attempt_dir.notified(occasion), {"at": now()})
    except Exception:  # neither the job nor waiting for it may end because of this
        log.exception("failed to send alert: %s", what)


def _links(ti: Any) -> list[tuple[str, str]]:
    if ti is None:
        return []
    log_page = page_url(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number)
    return [("Log", log_page), ("Run", page_url(ti.dag_id, ti.run_id))]


async def _was_notified(cluster_name: str | None, directory: str | None, occasion: Occasion) -> bool:
    if not (cluster_name and directory):
        return False
    try:
        async with open_client(cluster_name) as client:
            await client.read(f"{directory}/{attempt_dir.notified(occasion)}")
    except (CommandFailed, LoginNodeUnreachable):
        return False
    return True


async def write_attempt_file(cluster_name: str | None, directory: str | None, name: str, value: Any) -> None:
    """Write a small JSON file into an attempt's directory; log a warning where that fails.

    Args:
        cluster_name: Name of the cluster file; None, like ``directory``, where there is no such place: nothing is done.
        directory: The attempt's, on the cluster.
        name: The file's name, of :mod:`attempt_dir`.
        value: JSON values.
    """
    if not (cluster_name and directory):
        return
    try:
        async with open_client(cluster_name) as client:
            await client.put_files(directory, AttemptFiles({name: json.dumps(value)}))
    except (CommandFailed, ClusterUnavailable, WorkspaceNotWritable) as error:
        log.warning(
            "failed to write %s/%s on cluster %s; a triggerer that takes over does not see it: %s",
            directory, name, cluster_name, error,
        )  # fmt: skip
