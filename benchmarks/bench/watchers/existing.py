"""llm-bridge's triggers for jobs that exist already: what a triggerer does; their output goes to standard output."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.bench.watchers import protocol
from llm_bridge.triggers.slurm import SlurmJobTrigger


async def watch(request: dict[str, Any]) -> None:
    """Follow the jobs, each ``[cluster, id, attempt's directory]``, until all have ended."""

    async def notice(number: int, trigger: SlurmJobTrigger) -> None:
        async for event in trigger.run():
            assert event.payload["end"] == "ended", event.payload
        protocol.noticed(number)

    triggers = [SlurmJobTrigger(*job) for job in request["jobs"]]
    waiting = [asyncio.create_task(notice(*each)) for each in enumerate(triggers)]
    protocol.say("submitted")
    await asyncio.gather(*waiting)


if __name__ == "__main__":
    asyncio.run(watch(protocol.read_request()))
    protocol.stay()
