"""Alerts about a job that goes on, sent from the trigger that waits for it: once an attempt."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import Any

from llm_bridge.alerts.channels import tell
from llm_bridge.alerts.config import load_alerts
from llm_bridge.alerts.contents import now
from llm_bridge.alerts.message import Message, Occasion, page
from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.client import SlurmClient, SlurmUnreachable
from llm_bridge.transport import CommandFailed, LoginNodeUnreachable, connect

log = logging.getLogger(__name__)

# A triggerer has time; a worker that waits itself has it, too.
PATIENCE_SECONDS = 60.0


async def tell_of_job(
    ti: Any,
    occasion: Occasion,
    what: str,
    facts: Iterable[tuple[str, Any]],
    *,
    cluster: str | None,
    directory: str | None,
    lines: Iterable[str] = (),
) -> None:
    """Tell it, unless this attempt's directory says that it has been told. Never raises.

    A trigger has no callbacks and cannot write Airflow's state store, so the mark is a file on the cluster,
    ``told-OCCASION.json``: it is found by whichever triggerer follows the job next. Set once the alert is out: a
    triggerer that dies in between tells it twice rather than never.

    :param ti: the task instance as the trigger knows it; None outside of a triggerer.
    :param directory: the attempt's; None where there is none, so that nothing is remembered.
    """
    try:
        alerts = await asyncio.to_thread(load_alerts)
        if alerts.silent or await _told(cluster, directory, occasion):
            return
        message = Message.of(
            occasion,
            f"{ti.dag_id}: {ti.task_id}: {what}" if ti else what,
            [
                ("What", what),
                *facts,
                ("Attempt", ti.try_number if ti else None),
                ("Run", ti.run_id if ti else None),
            ],
            lines=lines,
            links=[*_links(ti), ("On the cluster", directory)],
        )
        await asyncio.to_thread(tell, message, alerts, PATIENCE_SECONDS)
        await write_down(cluster, directory, f"told-{occasion}.json", json.dumps({"at": now()}))
    except Exception:  # the job goes on, and so does the waiting
        log.exception("this could not be told: %s", what)


def _links(ti: Any) -> list[tuple[str, str]]:
    if ti is None:
        return []
    log_page = page(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number)
    return [("Log", log_page), ("Run", page(ti.dag_id, ti.run_id))]


async def _told(cluster_name: str | None, directory: str | None, occasion: Occasion) -> bool:
    if not (cluster_name and directory):
        return False
    cluster = await asyncio.to_thread(load_cluster, cluster_name)
    try:
        async with connect(cluster) as transport:
            await SlurmClient(cluster, transport).read(f"{directory}/told-{occasion}.json")
    except (CommandFailed, LoginNodeUnreachable):
        return False
    return True


async def write_down(cluster_name: str | None, directory: str | None, name: str, text: str) -> None:
    """Put a small file into an attempt's directory; where that cannot be done now, the log says so. Never raises.

    :param cluster_name: None, like ``directory``, where there is no such place: nothing is done.
    """
    if not (cluster_name and directory):
        return
    cluster = await asyncio.to_thread(load_cluster, cluster_name)
    try:
        async with connect(cluster) as transport:
            await SlurmClient(cluster, transport).place(directory, {name: text})
    except (CommandFailed, LoginNodeUnreachable, SlurmUnreachable) as error:
        log.warning("%s could not be written, a triggerer that takes over may not know it: %s", name, error)
