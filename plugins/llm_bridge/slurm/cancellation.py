"""Cancel jobs, and wait until they have ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from llm_bridge.exceptions import ClusterUnavailable, SlurmUnavailable
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.status import JobInfo, Phase

POLL_INTERVAL_SECONDS = 1.0
MAX_POLL_INTERVAL_SECONDS = 15.0
# Maximum wait for the end of a cancelled job in on_kill, which has 30 s in all ([triggerer] on_kill_timeout).
CANCEL_SECONDS = 20.0

Returned = TypeVar("Returned")

# asyncio keeps only weak references to its tasks.
_background: set[asyncio.Task[None]] = set()


async def cancel_and_wait(
    cluster_name: str, job_ids: Iterable[str], seconds: float = 120.0
) -> dict[str, JobInfo]:
    """Cancel jobs and poll until they have ended.

    scancel sends SIGTERM, and SIGKILL after the site's KillWait (30 s by default, slurm.conf(5)). A job is COMPLETING
    meanwhile, and while the site's epilog runs: Slurm needs nothing more to end it.

    Args:
        cluster_name: Name of the cluster file.
        job_ids: The jobs.
        seconds: Maximum seconds to wait.

    Returns:
        The jobs that have not ended by then, by id.

    Raises:
        LoginNodeUnreachable: The login node does not answer.
        SlurmUnavailable: slurmctld does not answer.
    """
    job_ids = list(job_ids)
    async with open_client(cluster_name) as client:
        await client.cancel(job_ids)
        until, pause = time.monotonic() + seconds, POLL_INTERVAL_SECONDS
        while True:
            states = await client.find(job_ids)
            alive = {i: info for i, info in states.items() if info.phase is not Phase.ENDED}
            if not alive or time.monotonic() > until:
                return alive
            await asyncio.sleep(pause)
            pause = min(MAX_POLL_INTERVAL_SECONDS, pause * 1.3)


async def close_attempts(cluster_name: str, stage_directory: str) -> list[str]:
    """Close all attempts of a stage: none of them can get a job afterwards.

    Args:
        cluster_name: Name of the cluster file.
        stage_directory: The stage's directory on the cluster.

    Returns:
        The ids of the jobs that the attempts already have. After a crash, slurmctld may have lost a job and given its
        id to another one, which is not among them: it must not be cancelled.

    Raises:
        LoginNodeUnreachable: The login node does not answer.
        SlurmUnavailable: The job of an attempt is not recorded, and slurmctld does not answer.
    """
    async with open_client(cluster_name) as client:
        found = await client.list_attempts(stage_directory, close=True)
        try:
            states = await client.find({attempt.job_id for attempt in found})
        except SlurmUnavailable:  # scancel fails as well now
            states = {}
    return sorted(
        {
            job_id
            for job_id, directory in found
            if job_id not in states or states[job_id].belongs_to(directory)
        }
    )


async def close_and_cancel(
    cluster_name: str, stage_directory: str, seconds: float = CANCEL_SECONDS
) -> dict[str, JobInfo]:
    """Close all attempts of a stage and cancel their jobs; see :func:`cancel_and_wait`."""
    jobs = await close_attempts(cluster_name, stage_directory)
    return await cancel_and_wait(cluster_name, jobs, seconds) if jobs else {}


async def close_and_wait(cluster_name: str, stage_directory: str) -> None:
    """Close all attempts of a stage and return when their jobs have ended; retry while the cluster is unavailable."""
    left: Iterable[str] = await retry_while_unavailable(close_attempts, cluster_name, stage_directory)
    while left:
        left = await retry_while_unavailable(cancel_and_wait, cluster_name, left)


def close_in_background(cluster_name: str, stage_directory: str) -> asyncio.Task[None]:
    """Run :func:`close_and_wait` in a task that lives as long as this process.

    If the process ends before the jobs do, ``reap_orphans`` finds them.
    """
    return spawn_background(close_and_wait(cluster_name, stage_directory))


async def shielded(work: Coroutine[Any, Any, None]) -> None:
    """Await ``work`` without passing the caller's cancellation on to it.

    Airflow 3.3.2 calls a trigger's ``on_kill`` and cancels it again with every sync, about a second later, until it has
    ended (``TriggerRunner.cancel_triggers``): this cancels whatever it still awaits, regardless of ``on_kill_timeout``.
    """
    await asyncio.shield(spawn_background(work))


def spawn_background(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run ``work`` in a task that lives as long as this process."""
    task = asyncio.create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
    return task


async def retry_while_unavailable(act: Callable[..., Awaitable[Returned]], *arguments: Any) -> Returned:
    """Return ``await act(*arguments)``, retrying while the login node or Slurm is unavailable."""
    unavailable = retry_if_exception_type(ClusterUnavailable)
    return await AsyncRetrying(retry=unavailable, wait=wait_random_exponential(min=1, max=60))(
        act, *arguments
    )
