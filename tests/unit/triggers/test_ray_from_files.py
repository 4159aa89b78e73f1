"""End of a Ray job whose cluster's Slurm job has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.ray.client import RayTarget
from llm_bridge.ray.events import RayEndReason
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.events import EndReason
from llm_bridge.slurm.poller import JobUpdate
from llm_bridge.slurm.status import JobInfo
from llm_bridge.triggers.ray_follower import RayFollowContext
from llm_bridge.triggers.ray_from_files import FileFollower

TARGET = RayTarget(cluster="local", job_id="7", directory="/w/c/attempt-1")
RUNNING = JobInfo("7", "RUNNING", nodes="n1")


class Poller:
    """Poller whose Slurm job has these updates."""

    def __init__(self, *updates: JobUpdate) -> None:
        self.updates = updates

    async def follow(self, *arguments: Any, **options: Any) -> AsyncIterator[JobUpdate]:
        for update in self.updates:
            yield update


def follower() -> FileFollower:
    async def end() -> None:
        raise AssertionError("no job hangs here")

    trigger: Any = SimpleNamespace(log=logging.getLogger("t"), task_instance=None)
    return FileFollower(RayFollowContext(trigger, TARGET, "j", 1.0, None, None, end), "/w/ppo/ray-1")


@pytest.mark.parametrize(("end", "forgotten"), [(EndReason.FORGOTTEN, True), (EndReason.UNWATCHED, False)])
async def test_a_cluster_that_slurm_has_lost_is_reported_as_such(end: EndReason, forgotten: bool) -> None:
    subject = follower()
    poller: Any = Poller(JobUpdate(info=RUNNING), JobUpdate(notice="Slurm has lost job 7", end=end))
    lost = await subject._lost_cluster(await subject._follow_allocation(poller), {})
    assert (lost.end, lost.info, lost.notice) == (
        RayEndReason.ALLOCATION_ENDED,
        None,
        "Slurm has lost job 7",
    )
    assert lost.forgotten is forgotten


async def test_a_requeue_of_the_slurm_job_ends_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cause(*arguments: Any) -> str:
        return "(n1 is DOWN)"

    monkeypatch.setattr("llm_bridge.ray.cluster_job.cause", cause)
    subject = follower()
    requeued = JobInfo("7", "PENDING", restarts=1)
    poller: Any = Poller(JobUpdate(info=RUNNING), JobUpdate(info=requeued), JobUpdate(info=RUNNING))
    lost = await subject._lost_cluster(await subject._follow_allocation(poller), {})
    assert (lost.info, lost.cause, lost.forgotten) == (requeued, "(n1 is DOWN)", False)


async def test_the_address_of_the_wandb_run_that_the_driver_leaves_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored: list[Any] = []

    async def store(trigger: Any, files: dict[str, Any]) -> None:
        stored.append(files)

    async def repeat(*arguments: Any) -> None:
        pass

    monkeypatch.setattr("llm_bridge.triggers.ray_from_files.store_address", store)
    monkeypatch.setattr("llm_bridge.monitoring.log_relay.LogRelay.repeat_earlier", repeat)
    files = {attempt_dir.WANDB_RUN: {"url": "https://wandb.ai/r"}}
    poller: Any = Poller(JobUpdate(files=files), JobUpdate(end=EndReason.ENDED))
    poller.cluster = None
    await follower()._follow_driver(poller, asyncio.Event())
    assert stored == [files, {}]
