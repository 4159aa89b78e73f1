"""End of the Slurm job that a Ray cluster runs in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llm_bridge.exceptions import SlurmUnavailable
from llm_bridge.ray import cluster_job
from llm_bridge.ray.client import RayTarget
from llm_bridge.slurm.accounting import Accounting
from llm_bridge.slurm.status import JobInfo

TARGET = RayTarget(cluster="local", job_id="7", directory="/w/c")


class Slurm:
    """Client of a Slurm cluster with one job."""

    info: JobInfo | None = None
    error: Exception | None = None
    names: dict[str, str] = {}

    async def look_up(self, job_id: str, directory: str) -> JobInfo | None:
        return self.info

    async def accounting(self, job_id: str, *, ended: bool, directory: str) -> Accounting:
        return Accounting("CANCELLED by 1001")

    async def user_name(self, uid: str) -> str | None:
        return self.names.get(uid)

    async def down_nodes(self, nodes: str) -> dict[str, str]:
        if self.error:
            raise self.error
        return {"n2": "DOWN"}


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    client = Slurm()

    @asynccontextmanager
    async def open_client(cluster: str) -> AsyncIterator[Any]:
        yield client

    monkeypatch.setattr(cluster_job, "open_client", open_client)
    return client


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (JobInfo("7", "RUNNING"), None),
        (JobInfo("7", "PENDING"), None),
        (JobInfo("7", "OF_A_LATER_VERSION"), None),
        (JobInfo("7", "NODE_FAIL", nodes="n[1-2]"), "NODE_FAIL, on n[1-2]"),
        (None, "is no longer known to Slurm"),
    ],
)
async def test_only_a_final_state_or_an_unknown_job_is_an_end(
    slurm: Slurm, info: JobInfo | None, text: str | None
) -> None:
    slurm.info = info
    end = await cluster_job.ended(TARGET)
    assert end is None if text is None else end and text in end


async def test_a_cluster_that_is_no_slurm_job_has_no_such_end() -> None:
    assert await cluster_job.ended(RayTarget(address="http://x")) is None


async def test_the_cause_of_a_cancel_is_the_user(slurm: Slurm) -> None:
    info = JobInfo("7", "CANCELLED")
    assert await cluster_job.cause("local", info, "n1") == "by uid 1001"
    slurm.names = {"1001": "ann"}
    assert await cluster_job.cause("local", info, "n1") == "by user ann (uid 1001)"


async def test_the_cause_of_another_end_is_a_node_that_is_down(slurm: Slurm) -> None:
    info = JobInfo("7", "NODE_FAIL")
    assert await cluster_job.cause("local", info, "n[1-2]") == "(n2 is DOWN)"
    assert await cluster_job.cause("local", info, "") == ""
    slurm.error = SlurmUnavailable("x")
    assert await cluster_job.cause("local", info, "n[1-2]") == ""
