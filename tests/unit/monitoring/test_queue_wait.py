"""Alert about a job that waits too long in Slurm's queue."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from llm_bridge.monitoring import queue_wait
from llm_bridge.monitoring.hang import JobSubject
from llm_bridge.monitoring.queue_wait import QueueWaitMonitor
from llm_bridge.notifications.config import Alerts
from llm_bridge.slurm.status import JobInfo

JOB = JobSubject(None, logging.getLogger("t"), "c", "7", "/w/a", "Slurm job 7", list, lambda: "")
HOUR = 3600.0


def pending(waited: float) -> JobInfo:
    return JobInfo("7", "PENDING", reason="Priority", waited=waited)


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The alerts that were sent; the limit is 12 hours."""
    sent: list[dict[str, Any]] = []

    async def notify_job(ti: Any, occasion: str, what: str, facts: Any, **options: Any) -> None:
        sent.append({"occasion": occasion, "what": what, **dict(facts)})

    configured = Alerts.model_validate({"http": {"conn_id": "hook"}})
    monkeypatch.setattr(queue_wait, "notify_job", notify_job)
    monkeypatch.setattr(queue_wait, "load_alerts", lambda: configured)
    return sent


async def watch(monkeypatch: pytest.MonkeyPatch, first: JobInfo, *answers: JobInfo | None) -> int:
    """Follow a job whose next queries have these answers; return the number of queries."""
    left, queries = list(answers), 0

    async def query(self: QueueWaitMonitor) -> JobInfo | None:
        nonlocal queries
        queries += 1
        return left.pop(0)

    monkeypatch.setattr(QueueWaitMonitor, "_query", query)
    monkeypatch.setattr(queue_wait, "RETRY_INTERVAL_SECONDS", 0.0)
    async with QueueWaitMonitor(JOB) as monitor:
        await monitor.update_state(first)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not left:
                break
        await asyncio.sleep(0.05)
    return queries


async def test_a_job_that_waits_longer_than_the_limit_causes_one_alert(
    monkeypatch: pytest.MonkeyPatch, alerts: list[dict[str, Any]]
) -> None:
    assert await watch(monkeypatch, pending(12 * HOUR), None, pending(12.5 * HOUR)) == 2
    (alert,) = alerts
    assert alert["occasion"] == "queued" and "pending in Slurm's queue for 12 h 30 min" in alert["what"]
    assert alert["Slurm's reason"] == "Priority" and alert["Expected start"] == "unknown"


async def test_a_job_that_has_started_since_causes_none(
    monkeypatch: pytest.MonkeyPatch, alerts: list[dict[str, Any]]
) -> None:
    await watch(monkeypatch, pending(12 * HOUR), JobInfo("7", "RUNNING"))
    assert alerts == []


async def test_a_job_below_the_limit_costs_no_query(
    monkeypatch: pytest.MonkeyPatch, alerts: list[dict[str, Any]]
) -> None:
    assert await watch(monkeypatch, pending(HOUR)) == 0
    assert alerts == []
