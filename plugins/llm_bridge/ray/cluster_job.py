"""Read the state of the Slurm job that a Ray cluster runs in."""

from __future__ import annotations

import logging

from llm_bridge.exceptions import ClusterUnavailable
from llm_bridge.ray.client import RayTarget
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.status import JobInfo, Phase

log = logging.getLogger(__name__)


async def ended(target: RayTarget) -> str | None:
    """Return a clause on how the Slurm job of a Ray cluster ended; None while it waits or runs.

    A Ray cluster's job has already been seen running, so a job that squeue no longer lists has ended.

    Raises:
        LoginNodeUnreachable: No connection.
        SlurmUnavailable: slurmctld does not answer.
    """
    if not (target.cluster and target.job_id and target.directory):
        return None
    async with open_client(target.cluster) as slurm:
        info = await slurm.look_up(target.job_id, target.directory)
    name = f"Slurm job {target.job_id} on cluster {target.cluster!r}"
    if info is None:
        return f"{name} is no longer known to Slurm"
    if info.phase is not Phase.ENDED:
        return None
    return f"{name} {info.meaning.meaning}: {info.state}{f', on {info.nodes}' if info.nodes else ''}"


async def cause(cluster_name: str, info: JobInfo, ran_on: str) -> str:
    """Return the user that cancelled a job, or which of its nodes are down.

    Args:
        cluster_name: Name of the cluster file.
        info: State of the job, which has ended or was requeued.
        ran_on: Slurm's list of the nodes that it had.

    Returns:
        A clause for an error message; empty if Slurm has no such details or does not answer.
    """
    try:
        async with open_client(cluster_name) as slurm:
            if info.state.startswith("CANCELLED"):
                return await _cancelled_by(slurm, info)
            down = await slurm.down_nodes(ran_on) if ran_on else {}
            return f"({', '.join(f'{node} is {why}' for node, why in down.items())})" if down else ""
    except ClusterUnavailable as error:
        log.warning("Slurm unavailable; cannot query why job %s ended: %s", info.job_id, error)
    return ""


async def _cancelled_by(slurm: SlurmClient, info: JobInfo) -> str:
    found = await slurm.accounting(info.job_id, ended=True, directory=info.directory)
    uid = found.cancelled_by if found else ""
    if not uid.isdigit():
        return ""
    name = await slurm.user_name(uid)
    return f"by user {name} (uid {uid})" if name else f"by uid {uid}"
