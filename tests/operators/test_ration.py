"""The site's rate limit for Slurm commands (``rpc_budget``)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster, RpcBudget
from llm_bridge.exceptions import RateLimitExceeded
from llm_bridge.slurm.client import open_client


def limited(site: dict[str, Any], workspace: str, burst: int, per_minute: float) -> Cluster:
    budget = RpcBudget(burst=burst, per_minute=per_minute)
    return Cluster(
        name="test", **{**site, "rpc_budget": budget, "workspace": f"{site['workspace']}/{workspace}"}
    )


def call(cluster: Cluster, *reserves: int) -> list[Any]:
    async def all_of_them() -> list[Any]:
        async with open_client(cluster) as client:
            calls = [client.run(["sinfo", "-h"], reserve=reserve) for reserve in reserves]
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_commands_beyond_the_rate_limit_wait(site: dict[str, Any]) -> None:
    cluster = limited(site, "slow", burst=2, per_minute=60)
    began = time.monotonic()
    answers = call(cluster, 0, 0, 0, 0, 0)
    assert [answer.code for answer in answers] == [0] * 5
    assert time.monotonic() - began > 2.5  # two at once, then one per second


def test_polling_reserves_the_last_calls_for_submissions_and_cancellations(site: dict[str, Any]) -> None:
    cluster = limited(site, "reserved", burst=4, per_minute=1)
    (done,) = call(cluster, 3)
    assert done.code == 0
    (refused,) = call(cluster, 3)
    assert isinstance(refused, RateLimitExceeded) and refused.seconds > 30
    assert [answer.code for answer in call(cluster, 0, 0, 0)] == [0, 0, 0]


@pytest.mark.parametrize(("key", "value"), [("burst", 0), ("per_minute", 0)])
def test_a_rate_limit_that_allows_nothing_is_refused(key: str, value: int) -> None:
    with pytest.raises(ValueError):
        RpcBudget(**{"burst": 1, "per_minute": 1, key: value})
