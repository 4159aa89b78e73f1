"""Waiting for a Ray job without holding a worker slot, with an eye on the allocation that it lives in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from llm_bridge.config.load import load_cluster
from llm_bridge.ray.client import ENDED, RayClient, RayRefused, RayTarget, RayUnreachable, ray_client
from llm_bridge.slurm.cancel import to_the_end
from llm_bridge.slurm.output import LAST_LINES
from llm_bridge.slurm.triggers import EARLIEST_EVENT_SECONDS, TERMINAL, task_state
from llm_bridge.slurm.watcher import watcher_for
from llm_bridge.transport import LoginNodeUnreachable

# When a node dies, Ray often reports the job's failure before Slurm reports the node's: give Slurm this long
# to name the real cause.
CAUSE_SECONDS = 15.0
# Without an allocation to look at, an address that has been dead for so long is given up.
GIVE_UP_SECONDS = 1800.0


class RayJobTrigger(BaseTrigger):
    """Follow one Ray job; the event says how it ended, or that its allocation did.

    :param target: :class:`~llm_bridge.ray.client.RayTarget` as a dict.
    :param submission_id: Ray's id of the job.
    :param poll_seconds: between two looks at the job's status.
    :param deadline: epoch seconds; None for no limit. The Ray job is stopped when it passes.
    """

    def __init__(
        self,
        target: dict[str, Any],
        submission_id: str,
        poll_seconds: float = 15,
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self.target = target
        self.submission_id = submission_id
        self.poll_seconds = poll_seconds
        self.deadline = deadline
        self._delivered = 0
        self._tail = Tail()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "llm_bridge.ray.triggers.RayJobTrigger",
            {
                "target": self.target,
                "submission_id": self.submission_id,
                "poll_seconds": self.poll_seconds,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        began = time.monotonic()
        try:
            async with asyncio.timeout(
                None if self.deadline is None else max(0.0, self.deadline - time.time())
            ):
                event = await self.outcome()
        except TimeoutError:
            await self._stop()
            event = self._payload(
                "TIMEOUT", notice="the task's time limit has passed; the Ray job was stopped"
            )
        await asyncio.sleep(max(0.0, began + EARLIEST_EVENT_SECONDS - time.monotonic()))
        yield TriggerEvent(event)

    async def outcome(self) -> dict[str, Any]:
        """Follow job and allocation; whichever ends first decides, and the allocation names the cause."""
        target = RayTarget(**self.target)
        job = asyncio.create_task(self._follow_job(target))
        allocation = asyncio.create_task(self._follow_allocation(target)) if target.cluster else None
        try:
            waiting = {task for task in (job, allocation) if task}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if allocation is None or allocation.done():
                return (allocation or job).result()
            event = job.result()
            if event["status"] == "FAILED":
                await asyncio.wait({allocation}, timeout=CAUSE_SECONDS)
                if allocation.done():
                    return {**allocation.result(), "job": event["job"]}
            return event
        finally:
            for task in (job, allocation):
                if task and not task.done():
                    task.cancel()

    async def _follow_allocation(self, target: RayTarget) -> dict[str, Any]:
        assert target.cluster and target.job_id and target.directory
        reason, last = None, None
        watcher = watcher_for(await asyncio.to_thread(load_cluster, target.cluster))
        async with aclosing(watcher.follow(target.job_id, target.directory, output=False)) as updates:
            async for update in updates:
                reason = update.files.get("reason.json") or reason
                last = update
        assert last
        info = last.info.as_dict() if last.info else None
        return self._payload("ALLOCATION_ENDED", info=info, reason=reason, notice=last.notice)

    async def _follow_job(self, target: RayTarget) -> dict[str, Any]:
        unreachable_since: float | None = None
        while True:
            try:
                async with ray_client(target) as client:
                    return await self._until_end(client)
            except RayRefused as error:
                return self._payload("REFUSED", notice=str(error))
            except (RayUnreachable, LoginNodeUnreachable) as error:
                unreachable_since = unreachable_since or time.monotonic()
                if not target.cluster and time.monotonic() - unreachable_since > GIVE_UP_SECONDS:
                    return self._payload("UNREACHABLE", notice=str(error))
                self.log.warning("will look again in %.0f s: %s", self.poll_seconds, error)
                await asyncio.sleep(self.poll_seconds)

    async def _until_end(self, client: RayClient) -> dict[str, Any]:
        """Stream the log until the job has ended.

        :raises RayUnreachable: the connection broke; call again with a new client.
        """
        log = asyncio.create_task(self._stream_log(client))
        try:
            while True:
                job = await client.job(self.submission_id)
                if job is None:
                    return self._payload("LOST", notice=f"Ray does not know job {self.submission_id}")
                if job["status"] in ENDED:
                    await asyncio.wait({log}, timeout=5)
                    self._deliver(await client.logs(self.submission_id), 0)
                    for line in self._tail.rest():
                        self.log.info("%s", line)
                    return self._payload(job["status"], job=job)
                await asyncio.sleep(self.poll_seconds)
                if log.done():  # it broke off while the job goes on
                    log = asyncio.create_task(self._stream_log(client))
        finally:
            log.cancel()

    async def _stream_log(self, client: RayClient) -> None:
        """Each connection begins with the log's first line, so what was delivered before is left out."""
        position = 0
        try:
            async for text in client.follow_logs(self.submission_id):
                self._deliver(text, position)
                position += len(text)
        except RayUnreachable as error:
            self.log.debug("%s", error)  # the status poll notices too, and decides

    def _deliver(self, text: str, position: int) -> None:
        """Log the part of ``text`` (which begins at ``position`` of the log) that was not logged yet."""
        fresh = text[max(0, self._delivered - position) :]
        if fresh:
            self._delivered = position + len(text)
            for line in self._tail.add(fresh):
                self.log.info("%s", line)

    def _payload(self, status: str, **found: Any) -> dict[str, Any]:
        empty = {"job": None, "info": None, "reason": None, "notice": ""}
        lines = list(self._tail.last)
        return {"submission_id": self.submission_id, "status": status, "last_lines": lines, **empty, **found}

    async def on_kill(self) -> None:
        """As :meth:`SlurmJobTrigger.on_kill`: stop the job only if the task really was marked."""
        await to_the_end(self._killed())

    async def _killed(self) -> None:
        state = await task_state(self)
        if state in TERMINAL:
            self.log.info("the task was marked %s: stopping Ray job %s", state, self.submission_id)
            await self._stop()

    async def _stop(self) -> None:
        try:
            async with ray_client(RayTarget(**self.target)) as client:
                await client.stop(self.submission_id)
        except (RayUnreachable, RayRefused, LoginNodeUnreachable) as error:
            self.log.warning("could not stop Ray job %s: %s", self.submission_id, error)


def as_target(ray: dict[str, Any]) -> dict[str, Any]:
    """A target's fields out of what an operator returned, or of ``{"address": ...}``."""
    names = RayTarget.__dataclass_fields__
    return asdict(RayTarget(**{name: value for name, value in ray.items() if name in names}))


class Tail:
    """Cuts text into lines as it arrives, and keeps the last ones for the error message."""

    def __init__(self) -> None:
        self.last: list[str] = []
        self._open = ""

    def add(self, text: str) -> list[str]:
        """The lines that ``text`` completes. A progress bar's carriage returns count as line ends."""
        *lines, self._open = (self._open + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        return self._keep([line for line in lines if line.strip()])

    def rest(self) -> list[str]:
        """What came without a line end."""
        line, self._open = self._open, ""
        return self._keep([line] if line.strip() else [])

    def _keep(self, lines: list[str]) -> list[str]:
        self.last = [*self.last, *lines][-LAST_LINES:]
        return lines
