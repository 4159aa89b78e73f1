"""The Slurm job that a Ray cluster lives in."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from llm_bridge.config.load import load_cluster
from llm_bridge.ray.client import RayTarget
from llm_bridge.slurm.away import AWAY
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.states import Phase
from llm_bridge.transport import CommandFailed, connect

# Accounting tells of an end a second or two after squeue does (measured, 22.05).
ACCOUNTING_TRIES, ACCOUNTING_PAUSE = 3, 1.5

log = logging.getLogger(__name__)


@asynccontextmanager
async def slurm_client(cluster_name: str) -> AsyncIterator[SlurmClient]:
    """``async with`` it: Slurm on one cluster.

    :raises LoginNodeUnreachable: no connection.
    """
    cluster = await asyncio.to_thread(load_cluster, cluster_name)
    async with connect(cluster) as transport:
        yield SlurmClient(cluster, transport)


async def ended(target: RayTarget) -> str | None:
    """How the Slurm job of a Ray cluster has ended, in words; None while it waits or runs.

    A Ray cluster's job has been seen to run, so one that squeue does not list any more has ended.

    :raises LoginNodeUnreachable: no connection.
    :raises SlurmUnreachable: slurmctld does not answer.
    """
    if not (target.cluster and target.job_id and target.directory):
        return None
    async with slurm_client(target.cluster) as slurm:
        info = await slurm.look_up(target.job_id, target.directory)
    who = f"Slurm job {target.job_id} on cluster {target.cluster!r}"
    if info is None:
        return f"{who} is not known to Slurm any more"
    if info.phase is not Phase.ENDED:
        return None
    return f"{who} {info.meaning.meaning}: {info.state}{f', on {info.nodes}' if info.nodes else ''}"


async def cause(cluster_name: str, info: JobInfo, ran_on: str) -> str:
    """What Slurm knows beyond the state of a job that has ended, or was put back into the queue: who cancelled it, or
    which of its nodes is down.

    Empty where that is nothing, or where Slurm does not answer now: the state alone is told then.

    :param ran_on: list of the nodes that it had.
    """
    try:
        async with slurm_client(cluster_name) as slurm:
            if info.state.startswith("CANCELLED"):
                return await _cancelled_by(slurm, info)
            down = await slurm.down_nodes(ran_on) if ran_on else {}
            return f"({', '.join(f'{node} is {why}' for node, why in down.items())})" if down else ""
    except AWAY as error:
        log.warning("could not ask Slurm why job %s ended: %s", info.job_id, error)
    return ""


async def _cancelled_by(slurm: SlurmClient, info: JobInfo) -> str:
    for _ in range(ACCOUNTING_TRIES):
        if who := await slurm.cancelled_by(info.job_id):
            return who
        await asyncio.sleep(ACCOUNTING_PAUSE)
    return ""


async def read_json(cluster_name: str, path: str) -> Any:
    """A small JSON file on the cluster; None while it is not there.

    :raises LoginNodeUnreachable: no connection.
    """
    async with slurm_client(cluster_name) as slurm:
        try:
            return json.loads(await slurm.read(path))
        except (CommandFailed, ValueError):
            return None
