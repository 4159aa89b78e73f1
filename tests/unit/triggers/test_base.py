"""Serialization of triggers, their event, and ``on_kill``."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from llm_bridge.triggers import base
from llm_bridge.triggers.base import LlmBridgeTrigger
from llm_bridge.triggers.ray import RayJobTrigger
from llm_bridge.triggers.reachability import ClusterReachableTrigger, DashboardReachableTrigger
from llm_bridge.triggers.slurm import SlurmJobTrigger

TRIGGERS: list[LlmBridgeTrigger] = [
    SlurmJobTrigger("local", "7", "/w/a", ready_file="cluster.json", cancel_on_kill=False),
    RayJobTrigger({"address": "http://x"}, "j", pending_until=5.0, hang={"minutes": 30}),
    ClusterReachableTrigger("local", "/w/a", 5.0),
    DashboardReachableTrigger({"address": "http://x"}),
]


class Counting(LlmBridgeTrigger):
    """Trigger that counts its cancellations."""

    def __init__(self) -> None:
        super().__init__()
        self.kills = 0

    async def outcome(self) -> dict[str, Any]:
        return {"a": 1}

    async def kill(self) -> None:
        self.kills += 1


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: type(trigger).__name__)
def test_a_trigger_is_the_same_after_airflow_has_stored_it(trigger: LlmBridgeTrigger) -> None:
    path, arguments = trigger.serialize()
    kind = type(trigger)
    assert path == f"{kind.__module__}.{kind.__name__}"
    assert kind(**arguments).serialize() == (path, arguments)


async def test_a_trigger_fires_once_with_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MIN_EVENT_DELAY_SECONDS", 0.0)
    assert [event.payload async for event in Counting().run()] == [{"a": 1}]


async def test_a_trigger_that_is_cancelled_during_a_request_to_airflows_api_raises_airflows_message() -> None:
    """Airflow calls on_kill only for its own message, which sync_to_async does not keep."""
    requested, answers = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def request() -> None:
        loop.call_soon_threadsafe(requested.set)
        answers.wait(60)

    class Requesting(Counting):
        async def outcome(self) -> dict[str, Any]:
            await sync_to_async(request)()
            return {}

    running = asyncio.ensure_future(anext(Requesting().run()))
    await requested.wait()
    running.cancel("user-action")
    try:
        with pytest.raises(asyncio.CancelledError, match="user-action"):
            await running
    finally:
        answers.set()


async def test_a_cancelled_trigger_has_ended_its_work_before_it_ends() -> None:
    began, ended = asyncio.Event(), False

    class Working(Counting):
        async def outcome(self) -> dict[str, Any]:
            nonlocal ended
            began.set()
            try:
                await asyncio.sleep(600)
            finally:
                await asyncio.sleep(0.05)
                ended = True
            return {}

    running = asyncio.ensure_future(anext(Working().run()))
    await began.wait()
    running.cancel("user-action")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended


@pytest.mark.parametrize(
    ("state", "kills"),
    [("failed", 1), ("success", 1), ("deferred", 0), ("running", 0), ("queued", 0), (None, 0)],
)
async def test_on_kill_cancels_only_if_the_task_has_ended(
    monkeypatch: pytest.MonkeyPatch, state: str | None, kills: int
) -> None:
    """Airflow also calls it when a trigger moves to another triggerer."""

    async def task_state(trigger: Any) -> str | None:
        return state

    monkeypatch.setattr(base, "task_state", task_state)
    trigger = Counting()
    await trigger.on_kill()
    assert trigger.kills == kills
