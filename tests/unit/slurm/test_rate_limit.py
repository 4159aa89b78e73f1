"""Limit of one job's output in Airflow's log."""

from __future__ import annotations

import pytest

from llm_bridge.slurm import rate_limit
from llm_bridge.slurm.rate_limit import OutputRateLimiter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(rate_limit.time, "monotonic", lambda: now[0])
    return now


def test_a_burst_is_read_in_parts_of_limited_size(clock: list[float]) -> None:
    limiter = OutputRateLimiter()
    assert limiter.limits() == (
        rate_limit.MAX_POLL_BYTES,
        rate_limit.BURST_BYTES + rate_limit.MAX_BACKLOG_BYTES,
    )


def test_after_a_burst_output_is_read_at_the_rate(clock: list[float]) -> None:
    limiter = OutputRateLimiter()
    limiter.consume(rate_limit.BURST_BYTES)
    assert limiter.limits() == (0, rate_limit.MAX_BACKLOG_BYTES)
    clock[0] += 2
    assert limiter.limits()[0] == 2 * rate_limit.BYTES_PER_SECOND
    clock[0] += 1e6
    assert limiter.limits()[0] == rate_limit.MAX_POLL_BYTES


def test_the_end_of_an_ended_jobs_output_is_read_at_any_rate(clock: list[float]) -> None:
    limiter = OutputRateLimiter()
    limiter.consume(2 * rate_limit.BURST_BYTES)
    assert limiter.limits(final=True) == (rate_limit.MAX_POLL_BYTES, rate_limit.LAST_BYTES)
