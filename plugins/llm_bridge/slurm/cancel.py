"""Cancel jobs and see that they are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.client import SlurmClient, SlurmUnreachable
from llm_bridge.slurm.states import Phase
from llm_bridge.transport import LoginNodeUnreachable, connect

LOOK_SECONDS = 1.0
MOST_LOOK_SECONDS = 15.0
# on_kill has 30 s in all ([triggerer] on_kill_timeout).
CANCEL_SECONDS = 20.0


async def cancel_and_wait(cluster_name: str, job_ids: Sequence[str], seconds: float = 120.0) -> list[str]:
    """Cancel jobs and look until they are gone.

    scancel sends SIGTERM, and SIGKILL after the site's KillWait (30 s by default, slurm.conf(5)).

    :param seconds: how long to look.
    :returns: the ids of those that were still there after that.
    :raises LoginNodeUnreachable: no connection.
    :raises SlurmUnreachable: slurmctld does not answer.
    """
    cluster = await asyncio.to_thread(load_cluster, cluster_name)
    async with connect(cluster) as transport:
        client = SlurmClient(cluster, transport)
        await client.cancel(job_ids)
        until, pause = time.monotonic() + seconds, LOOK_SECONDS
        while True:
            states = await client.find(job_ids)
            alive = [i for i, info in states.items() if info.phase is not Phase.ENDED]
            if not alive or time.monotonic() > until:
                return alive
            await asyncio.sleep(pause)
            pause = min(MOST_LOOK_SECONDS, pause * 1.3)


Found = TypeVar("Found")

# asyncio keeps only weak references to its tasks.
_going_on: set[asyncio.Task[None]] = set()


def go_on_closing(cluster_name: str, stage_directory: str) -> asyncio.Task[None]:
    """Cancel whatever jobs a stage has, in a task of its own that ends when they are gone; it can get none afterwards.

    However long the login node or Slurm is away: it lives as long as this process. What a process takes with it to its
    end, ``reap_orphans`` finds.
    """
    return go_on(until_closed(cluster_name, stage_directory))


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``; it goes on to its end also when the caller is cancelled.

    Airflow 3.3.2 calls a trigger's ``on_kill`` and cancels it again with every sync, about a second later, until it has
    ended (``TriggerRunner.cancel_triggers``): whatever it still awaits then is lost, ``on_kill_timeout`` or not.
    """
    await asyncio.shield(go_on(work))


def go_on(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Do ``work`` in a task of its own, which lives as long as this process."""
    task = asyncio.create_task(work)
    _going_on.add(task)
    task.add_done_callback(_going_on.discard)
    return task


async def until_closed(cluster_name: str, stage_directory: str) -> None:
    """See :func:`go_on_closing`."""
    left = await patiently(close_attempts, cluster_name, stage_directory)
    while left:
        left = await patiently(cancel_and_wait, cluster_name, left)


async def patiently(act: Callable[..., Awaitable[Found]], *arguments: Any) -> Found:
    """``await act(*arguments)``, again and again while the login node or Slurm is away."""
    away = retry_if_exception_type((LoginNodeUnreachable, SlurmUnreachable))
    return await AsyncRetrying(retry=away, wait=wait_random_exponential(min=1, max=60))(act, *arguments)


async def close_attempts(cluster_name: str, stage_directory: str) -> list[str]:
    """See to it that no attempt of a stage gets a job any more; the ids of those that did.

    :raises LoginNodeUnreachable: no connection.
    :raises SlurmUnreachable: slurmctld must be asked for an attempt's job, and does not answer.
    """
    cluster = await asyncio.to_thread(load_cluster, cluster_name)
    async with connect(cluster) as transport:
        found = await SlurmClient(cluster, transport).attempts(stage_directory, close=True)
    return sorted({attempt["job_id"] for attempt in found})


async def close_and_cancel(
    cluster_name: str, stage_directory: str, seconds: float = CANCEL_SECONDS
) -> list[str]:
    """Cancel whatever jobs a stage has; it can get none afterwards. As :func:`cancel_and_wait`."""
    jobs = await close_attempts(cluster_name, stage_directory)
    return await cancel_and_wait(cluster_name, jobs, seconds) if jobs else []
