"""Wait for a Ray job, and monitor the Slurm allocation that it runs in, without holding a worker slot."""

from __future__ import annotations

import asyncio
import time
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Any

from llm_bridge.config.hang import Hang
from llm_bridge.exceptions import RayRequestError, ServiceUnavailable
from llm_bridge.ray.client import RayTarget, ray_client
from llm_bridge.ray.events import RayEndReason, RayJobEnd, RayJobEvent
from llm_bridge.ray.submission import stop_and_wait
from llm_bridge.slurm.cancellation import CANCEL_SECONDS, close_in_background
from llm_bridge.triggers.base import LlmBridgeTrigger
from llm_bridge.triggers.ray_follower import RayFollowContext
from llm_bridge.triggers.ray_from_dashboard import DashboardFollower
from llm_bridge.triggers.ray_from_files import FileFollower


class RayJobTrigger(LlmBridgeTrigger):
    """Follow one Ray job and fire a :class:`RayJobEvent` when the job or its allocation has ended.

    Stops the job when the user marks the task (``on_kill``) and when ``deadline`` passes; never when the triggerer
    restarts.

    Args:
        target: :class:`~llm_bridge.ray.client.RayTarget` as a dict.
        submission_id: Ray's id of the job.
        directory: The submission's directory on the cluster; None if the cluster is no Slurm job of llm-bridge.
        poll_seconds: Seconds between two polls of the job's status.
        deadline: Epoch seconds; None for no limit.
        own_stage: Stage directory of the Ray cluster's Slurm job if this task started it; that job is then cancelled
            when the trigger ends for any reason.
        pending_until: Epoch seconds after which a job that requests more than any node of the cluster has is stopped;
            None for never.
        hang: :class:`~llm_bridge.config.hang.Hang` as a dict: when the job counts as hung; None for never.
    """

    def __init__(
        self,
        target: dict[str, Any],
        submission_id: str,
        directory: str | None = None,
        poll_seconds: float = 15,
        deadline: float | None = None,
        own_stage: str | None = None,
        pending_until: float | None = None,
        hang: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.target = target
        self.submission_id = submission_id
        self.directory = directory
        self.poll_seconds = poll_seconds
        self.deadline = deadline
        self.own_stage = own_stage
        self.pending_until = pending_until
        self.hang = hang

    async def outcome(self) -> dict[str, Any]:
        """Follow the job to its end and cancel a cluster that the task started; return the event's payload."""
        left = None if self.deadline is None else max(0.0, self.deadline - time.time())
        try:
            async with asyncio.timeout(left):
                end = await self._follow()
        except TimeoutError:
            self.log.warning("task's time limit has passed; stopping Ray job %s", self.submission_id)
            if not self.own_stage:  # else the job ends with its cluster
                await self._stop_job()
            end = RayJobEnd(RayEndReason.TIMEOUT, "the task's time limit has passed; the Ray job was stopped")
        if end.end is RayEndReason.CANNOT_START and not self.own_stage:
            await self._stop_job(seconds=0)  # a node with the resources may join later
        await self._end_own_cluster(None)
        return self._event(end).to_json()

    async def _follow(self) -> RayJobEnd:
        context = RayFollowContext(
            trigger=self,
            target=RayTarget(**self.target),
            submission_id=self.submission_id,
            poll_seconds=self.poll_seconds,
            pending_until=self.pending_until,
            hang=Hang(**self.hang) if self.hang else None,
            end_hung_job=self.end_hung_job,
        )
        if self.directory:
            return await FileFollower(context, self.directory).outcome()
        return await DashboardFollower(context).outcome()

    def _event(self, end: RayJobEnd) -> RayJobEvent:
        found = {field.name: getattr(end, field.name) for field in fields(RayJobEnd)}
        if end.hang and end.hang.ended:
            found["notice"] = end.hang.notice
        return RayJobEvent(
            **found,
            target=RayTarget(**self.target),
            submission_id=self.submission_id,
            directory=self.directory,
            own_cluster=self.own_stage is not None,
        )

    async def end_hung_job(self) -> None:
        """Stop a job that hangs; cancel its cluster if Ray cannot stop it because a part of Ray hangs too."""
        if self.own_stage:
            await self._end_own_cluster(CANCEL_SECONDS)
            return
        cluster, directory = self.target.get("cluster"), self.target.get("directory")
        if await self._stop_job() or not (cluster and directory):
            return
        self.log.warning(
            "Ray did not stop job %s; cancelling its cluster, Slurm job %s",
            self.submission_id,
            self.target["job_id"],
        )
        close_in_background(cluster, str(PurePosixPath(directory).parent))

    async def kill(self) -> None:
        """Stop the job, or cancel the cluster that the task started; continues in the background after a timeout."""
        if self.own_stage:
            await self._end_own_cluster(CANCEL_SECONDS)
        else:
            await self._stop_job()

    async def _end_own_cluster(self, seconds: float | None) -> None:
        """Cancel the Slurm job of the cluster that the task started, if there is one.

        Args:
            seconds: How long to wait for the job's end; None waits without limit.
        """
        if not self.own_stage:
            return
        self.log.info(
            "cancelling the Ray cluster that this task started: Slurm job %s", self.target["job_id"]
        )
        closing = close_in_background(self.target["cluster"], self.own_stage)
        done, _ = await asyncio.wait({closing}, timeout=seconds)
        if done:
            self.log.info("Slurm job %s has ended", self.target["job_id"])
        else:
            self.log.warning("Slurm job %s has not ended yet; still cancelling it", self.target["job_id"])

    async def _stop_job(self, seconds: float = CANCEL_SECONDS) -> bool:
        """Have Ray stop the job; return True if it has ended within ``seconds``; 0 does not poll."""
        try:
            async with ray_client(RayTarget(**self.target)) as client:
                ended = await stop_and_wait(client, self.submission_id, seconds)
        except (RayRequestError, ServiceUnavailable) as error:
            self.log.warning("failed to stop Ray job %s: %s", self.submission_id, error)
            return False
        if ended and seconds:
            self.log.info("Ray job %s has ended", self.submission_id)
        elif seconds:
            self.log.warning(
                "Ray job %s has not ended %.0f s after the request to stop it", self.submission_id, seconds
            )
        return ended
