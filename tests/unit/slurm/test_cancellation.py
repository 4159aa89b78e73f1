"""Work that continues after Airflow has cancelled a trigger's on_kill."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import pytest

from llm_bridge.exceptions import SlurmUnavailable
from llm_bridge.remote.messages import AttemptJob
from llm_bridge.slurm import cancellation
from llm_bridge.slurm.cancellation import shielded
from llm_bridge.slurm.status import JobInfo


async def test_work_continues_however_often_airflow_cancels_the_trigger_that_awaits_it() -> None:
    done = asyncio.Event()

    async def work() -> None:
        for _ in range(10):
            await asyncio.sleep(0.01)
        done.set()

    on_kill = asyncio.create_task(shielded(work()))
    while not on_kill.done():
        await asyncio.sleep(0.02)
        on_kill.cancel("user action")
    with contextlib.suppress(asyncio.CancelledError):
        await on_kill
    assert not done.is_set()
    async with asyncio.timeout(5):
        await done.wait()


class Client:
    """Stands for SlurmClient: three attempts, and what Slurm lists under their ids."""

    attempts = (
        AttemptJob("7", "/w/attempt-1"),
        AttemptJob("8", "/w/attempt-2"),
        AttemptJob("9", "/w/attempt-3"),
    )
    listed = {
        "8": JobInfo("8", "RUNNING", directory="/w/attempt-2"),
        "9": JobInfo("9", "RUNNING", directory="/x"),
    }
    error: SlurmUnavailable | None = None

    async def list_attempts(self, stage_directory: str, *, close: bool) -> tuple[AttemptJob, ...]:
        return self.attempts

    async def cancel(self, job_ids: Iterable[str]) -> None:
        """Slurm answers at once, and ends the jobs later."""

    async def find(self, job_ids: Iterable[str]) -> dict[str, JobInfo]:
        if self.error:
            raise self.error
        return {job_id: self.listed[job_id] for job_id in job_ids if job_id in self.listed}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()

    @contextlib.asynccontextmanager
    async def open_client(cluster: str) -> AsyncIterator[Client]:
        yield client

    monkeypatch.setattr(cancellation, "open_client", open_client)
    return client


async def test_a_job_that_got_the_id_of_a_lost_one_is_not_cancelled(client: Client) -> None:
    assert await cancellation.close_attempts("c", "/w") == ["7", "8"]


async def test_attempts_are_closed_while_slurm_is_unavailable(client: Client) -> None:
    client.error = SlurmUnavailable("down")
    assert await cancellation.close_attempts("c", "/w") == ["7", "8", "9"]


async def test_jobs_that_have_not_ended_in_time_are_returned_with_their_state(client: Client) -> None:
    client.listed = {"7": JobInfo("7", "CANCELLED by 1001"), "8": JobInfo("8", "COMPLETING")}
    assert await cancellation.cancel_and_wait("c", {"7", "8", "9"}, seconds=0) == {"8": client.listed["8"]}
