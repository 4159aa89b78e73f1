"""Follow a Ray job by what its dashboard says alone: any Ray cluster that is not a Slurm job of ours."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from llm_bridge.config.hang import Hang
from llm_bridge.ray.away import GIVE_UP_SECONDS
from llm_bridge.ray.client import ENDED, RayClient, RayRefused, RayTarget, RayUnreachable, ray_client
from llm_bridge.ray.pending import given_up
from llm_bridge.ray.words import CANNOT_START
from llm_bridge.slurm.hang import Followed, HangWatch
from llm_bridge.slurm.output import LAST_LINES

if TYPE_CHECKING:
    from llm_bridge.ray.triggers import RayJobTrigger


class ByDashboard:
    """Follows one job: its output over a websocket, its status by asking.

    A log over the websocket begins with its first line, and is gone with the cluster: a triggerer that is restarted
    shows it anew.

    :param trigger: whose log the output goes to.
    :param pending_until: epoch seconds after which a job that can never start is given up; None for never.
    """

    def __init__(
        self,
        trigger: RayJobTrigger,
        target: RayTarget,
        submission_id: str,
        poll_seconds: float,
        pending_until: float | None = None,
    ) -> None:
        self._target = target
        self._submission_id = submission_id
        self._poll_seconds = poll_seconds
        self._log = trigger.log
        self._pending_until = pending_until
        self._answered = 0.0
        self._delivered = 0
        self._tail = Tail()
        ti, name = getattr(trigger, "task_instance", None), f"Ray job {submission_id}"
        # Not on Slurm, so nobody can look at its processes.
        job = Followed(ti, self._log, None, None, None, name, lambda: self._tail.last, lambda: "")
        hang = Hang(**trigger.hang) if trigger.hang else None
        self._hang = HangWatch(hang, job, trigger.end_hung)

    async def outcome(self) -> dict[str, Any]:
        """Follow it to its end; ``status`` and what goes with it."""
        self._answered = time.monotonic()
        async with self._hang:
            found = await self._follow()
        return {"hang": self._hang.found, **found}

    async def _follow(self) -> dict[str, Any]:
        while True:
            try:
                async with ray_client(self._target) as client:
                    return self._with_lines(await self._until_end(client))
            except RayRefused as error:
                return self._with_lines({"status": "REFUSED", "notice": str(error)})
            except RayUnreachable as error:
                if time.monotonic() - self._answered > GIVE_UP_SECONDS:
                    return self._with_lines({"status": "UNREACHABLE", "notice": str(error)})
                self._log.warning("will look again in %.0f s: %s", self._poll_seconds, error)
                await asyncio.sleep(self._poll_seconds)

    def _with_lines(self, found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "last_lines": list(self._tail.last)}

    async def _until_end(self, client: RayClient) -> dict[str, Any]:
        """Stream the log until the job has ended.

        :raises RayUnreachable: the connection broke; call again with a new client.
        """
        log = asyncio.create_task(self._stream_log(client))
        try:
            while True:
                job = await client.job(self._submission_id)
                self._answered = time.monotonic()
                if job is None:
                    return {"status": "LOST", "notice": f"Ray does not know job {self._submission_id}"}
                if job["status"] in ENDED:
                    await asyncio.wait({log}, timeout=5)
                    self._deliver(await client.logs(self._submission_id), 0)
                    for line in self._tail.rest():
                        self._log.info("%s", line)
                    return {"status": job["status"], "job": job}
                if why := await given_up(client, job, self._submission_id, self._pending_until):
                    return {"status": CANNOT_START, "job": job, "notice": why}
                if job["status"] == "RUNNING":
                    self._hang.runs()
                    self._hang.look(self._delivered)
                await asyncio.sleep(self._poll_seconds)
                if log.done():  # it broke off while the job goes on
                    log = asyncio.create_task(self._stream_log(client))
        finally:
            log.cancel()

    async def _stream_log(self, client: RayClient) -> None:
        """Each connection begins with the log's first line, so what was delivered before is left out."""
        position = 0
        try:
            async for text in client.follow_logs(self._submission_id):
                self._deliver(text, position)
                position += len(text)
        except RayUnreachable as error:
            self._log.debug("%s", error)  # the status poll notices too, and decides

    def _deliver(self, text: str, position: int) -> None:
        """Log the part of ``text`` (which begins at ``position`` of the log) that was not logged yet."""
        fresh = text[max(0, self._delivered - position) :]
        if fresh:
            self._delivered = position + len(text)
            for line in self._tail.add(fresh):
                self._log.info("%s", line)


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
