"""Follow a Ray job through the dashboard alone, on a Ray cluster that is not a Slurm job of llm-bridge."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from llm_bridge.exceptions import RayRequestError, RayUnavailable
from llm_bridge.monitoring.hang import HangMonitor, JobSubject
from llm_bridge.monitoring.log_relay import LAST_LINES
from llm_bridge.ray.client import RayClient, ray_client
from llm_bridge.ray.events import RayEndReason, RayJobEnd
from llm_bridge.ray.schedulability import unschedulable_reason
from llm_bridge.triggers.ray_follower import RayFollowContext

# An unreachable dashboard counts as lost after this: without a Slurm allocation there is no other source of its state.
UNREACHABLE_TIMEOUT_SECONDS = 1800.0
# Wait for the log stream after the job's end, before the rest of the log is read with one request.
STREAM_END_TIMEOUT_SECONDS = 5.0


class DashboardFollower:
    """Follower of one job: its output over a websocket, its status by polling.

    The websocket always sends the log from its first line, so a restarted triggerer relays the whole log again; the log
    is lost with the cluster.

    Args:
        context: Job to follow.
    """

    def __init__(self, context: RayFollowContext) -> None:
        self._context = context
        self._target = context.target
        self._submission_id = context.submission_id
        self._log = context.trigger.log
        self._answered = 0.0
        self._delivered = 0
        self._buffer = LineBuffer()
        ti, name = getattr(context.trigger, "task_instance", None), f"Ray job {context.submission_id}"
        # Not on Slurm, so no stack dump of its processes is possible.
        subject = JobSubject(ti, self._log, None, None, None, name, lambda: self._buffer.last, lambda: "")
        self._hang = HangMonitor(context.hang, subject, context.end_hung_job)

    async def outcome(self) -> RayJobEnd:
        """Follow the job until it ends or is lost; return its state."""
        self._answered = time.monotonic()
        async with self._hang:
            end = await self._follow()
        return replace(end, last_lines=tuple(self._buffer.last), hang=self._hang.found)

    async def _follow(self) -> RayJobEnd:
        interval = self._context.poll_seconds
        while True:
            try:
                async with ray_client(self._target) as client:
                    return await self._until_end(client)
            except RayRequestError as error:
                return RayJobEnd(RayEndReason.REFUSED, str(error))
            except RayUnavailable as error:
                if time.monotonic() - self._answered > UNREACHABLE_TIMEOUT_SECONDS:
                    return RayJobEnd(RayEndReason.UNREACHABLE, str(error))
                self._log.warning("Ray dashboard unreachable; retrying in %.0f s: %s", interval, error)
                await asyncio.sleep(interval)

    async def _until_end(self, client: RayClient) -> RayJobEnd:
        """Stream the log until the job has ended.

        Raises:
            RayUnavailable: The connection broke; call again with a new client.
        """
        log = asyncio.create_task(self._stream_log(client))
        try:
            while True:
                job = await client.job(self._submission_id)
                self._answered = time.monotonic()
                if job is None:
                    return RayJobEnd(RayEndReason.LOST, f"Ray has no job {self._submission_id}")
                if job.has_ended:
                    await asyncio.wait({log}, timeout=STREAM_END_TIMEOUT_SECONDS)
                    self._deliver(await client.logs(self._submission_id), 0)
                    for line in self._buffer.rest():
                        self._log.info("%s", line)
                    return RayJobEnd(RayEndReason(job.status), job=job)
                reason = await unschedulable_reason(
                    client, job, self._submission_id, self._context.pending_until
                )
                if reason:
                    return RayJobEnd(RayEndReason.CANNOT_START, reason, job=job)
                if job.status == "RUNNING":
                    self._hang.mark_running()
                    self._hang.observe(self._delivered)
                await asyncio.sleep(self._context.poll_seconds)
                if log.done():  # the stream was interrupted while the job runs
                    log = asyncio.create_task(self._stream_log(client))
        finally:
            log.cancel()

    async def _stream_log(self, client: RayClient) -> None:
        """Relay the log; each connection starts at its first line, so lines relayed before are skipped."""
        position = 0
        try:
            async for text in client.follow_logs(self._submission_id):
                self._deliver(text, position)
                position += len(text)
        except RayUnavailable as error:
            self._log.debug("%s", error)  # the status poll gets the same error and handles it

    def _deliver(self, text: str, position: int) -> None:
        """Relay the part of ``text`` (which starts at character ``position`` of the log) that was not relayed yet."""
        fresh = text[max(0, self._delivered - position) :]
        if fresh:
            self._delivered = position + len(text)
            for line in self._buffer.add(fresh):
                self._log.info("%s", line)


class LineBuffer:
    """Buffer that splits arriving text into lines and keeps the last ones for the error message.

    Attributes:
        last: The last complete lines.
    """

    def __init__(self) -> None:
        self.last: list[str] = []
        self._open = ""

    def add(self, text: str) -> list[str]:
        """Return the lines that ``text`` completes. A progress bar's carriage returns count as line ends."""
        *lines, self._open = (self._open + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        return self._keep([line for line in lines if line.strip()])

    def rest(self) -> list[str]:
        """Return the text that has no line end yet, as a list of at most one line."""
        line, self._open = self._open, ""
        return self._keep([line] if line.strip() else [])

    def _keep(self, lines: list[str]) -> list[str]:
        self.last = [*self.last, *lines][-LAST_LINES:]
        return lines
