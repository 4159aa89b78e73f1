"""What goes on when Airflow cancels a trigger's on_kill."""

from __future__ import annotations

import asyncio
import contextlib

from llm_bridge.slurm.cancel import to_the_end


async def test_work_goes_on_however_often_airflow_cancels_the_trigger_that_awaits_it() -> None:
    done = asyncio.Event()

    async def work() -> None:
        for _ in range(10):
            await asyncio.sleep(0.01)
        done.set()

    on_kill = asyncio.create_task(to_the_end(work()))
    while not on_kill.done():
        await asyncio.sleep(0.02)
        on_kill.cancel("user action")
    with contextlib.suppress(asyncio.CancelledError):
        await on_kill
    assert not done.is_set()
    async with asyncio.timeout(5):
        await done.wait()
