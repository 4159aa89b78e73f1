"""llm-bridge: ``SlurmSubmission`` submits each job, ``SlurmJobTrigger`` waits, all in one process like a triggerer."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.bench.watchers import protocol
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.slurm.submission import SlurmSubmission
from llm_bridge.task_state import TaskState
from llm_bridge.triggers.slurm import SlurmJobTrigger
from testing.task_context import Store

# Below sshd's MaxSessions (10): each submission is a session of the one connection.
AT_ONCE = 8


def submission(cluster: str, workspace: str, run: str, number: int, script: str) -> SlurmSubmission:
    """Return the submission of one job, as an operator makes it."""
    job = SlurmJob(cluster=cluster, script=script, directory=f"{workspace}/{run}/job{number}")
    task = TaskState("bench", run, f"job{number}", -1, 1, 0, 0, Store())
    return SlurmSubmission(job, task, {})


async def watch(request: dict[str, Any]) -> None:
    """Submit the jobs and wait for all of them."""
    turns, run = asyncio.Semaphore(AT_ONCE), request["folder"].rpartition("/")[2]
    numbers = range(len(request["offsets"]))

    async def submit(number: int) -> SlurmJobTrigger:
        async with turns:
            made = submission(
                request["cluster"], request["workspace"], run, number, protocol.script(request, number)
            )
            attempt = (await made.submit()).attempt
        return SlurmJobTrigger(request["cluster"], attempt.job_id or "", attempt.directory)

    async def notice(number: int, trigger: SlurmJobTrigger) -> None:
        async for event in trigger.run():
            assert event.payload["end"] == "ended", event.payload
        protocol.noticed(number)

    async with open_client(request["cluster"]):
        triggers = await asyncio.gather(*(submit(number) for number in numbers))
        waiting = [asyncio.create_task(notice(*each)) for each in enumerate(triggers)]
        protocol.say("submitted")
        await asyncio.gather(*waiting)


if __name__ == "__main__":
    asyncio.run(watch(protocol.read_request()))
    protocol.stay()
