"""Serialization of triggers, their event, and ``on_kill``."""

from __future__ import annotations

from typing import Any

import pytest

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
