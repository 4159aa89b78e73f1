"""Idle time after which a job counts as hung."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from llm_bridge.config.hang import Hang
from llm_bridge.monitoring.hang import MAX_GAP_SECONDS, HangMonitor, IdleTimer, JobSubject


class Clock:
    """Advances only when a test sets ``now``."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def timer(clock: Clock, **more: Any) -> IdleTimer:
    """Return the timer of a running job whose limit is one minute."""
    start = more.pop("start_minutes", 0)
    found = IdleTimer(Hang(minutes=1, start_minutes=start), clock=clock, **more)
    found.running = True
    return found


def poll(found: IdleTimer, clock: Clock, seconds: float, size: int = 5) -> None:
    """Poll once a second."""
    for _ in range(int(seconds)):
        clock.now += 1
        found.observe(size)


def test_a_job_hangs_once_it_was_polled_without_output_for_its_limit(clock: Clock) -> None:
    found = timer(clock)
    poll(found, clock, 60)
    assert not found.expired
    poll(found, clock, 2)
    assert found.expired


def test_any_output_resets_the_timer_even_a_part_of_a_line(clock: Clock) -> None:
    found = timer(clock)
    poll(found, clock, 50)
    poll(found, clock, 50, size=6)
    assert not found.expired


def test_a_pending_or_suspended_job_does_not_hang_and_starts_at_zero_afterwards(clock: Clock) -> None:
    found = timer(clock)
    poll(found, clock, 50)
    found.running = False
    poll(found, clock, 500)
    assert found.seconds == 0
    found.running = True
    poll(found, clock, 50)
    assert not found.expired


def test_time_in_which_the_login_node_was_unreachable_does_not_count(clock: Clock) -> None:
    found = IdleTimer(Hang(minutes=30), clock=clock)
    found.running = True
    poll(found, clock, 10)
    clock.now += 24 * 3600
    found.observe(5)
    assert found.seconds <= 10 + MAX_GAP_SECONDS and not found.expired


def test_a_training_may_take_longer_until_its_first_step(clock: Clock) -> None:
    found = timer(clock, start_minutes=2)
    poll(found, clock, 150)
    assert not found.expired
    found.saw_step = True
    assert found.expired


def test_a_driver_that_has_not_started_does_not_hang(clock: Clock) -> None:
    found = timer(clock, starts_with_output=True)
    poll(found, clock, 500, size=0)
    assert found.seconds == 0
    poll(found, clock, 62, size=1)
    assert found.expired


async def test_a_job_with_new_output_no_longer_hangs() -> None:
    """Its event then has no hang report."""
    log, last = logging.getLogger("test"), ["step one"]
    job = JobSubject(None, log, None, None, None, "job 7", lambda: last, lambda: "")
    ended: list[str] = []

    async def end() -> None:
        ended.append("it")

    async with HangMonitor(Hang(minutes=0.001), job, end) as monitor:
        monitor.mark_running()
        for _ in range(300):
            monitor.observe(5)
            if monitor.found:
                break
            await asyncio.sleep(0.01)
        assert monitor.found and not monitor.found.ended and monitor.found.stacks == ()
        monitor.observe(6)
        assert monitor.found is None and ended == []
