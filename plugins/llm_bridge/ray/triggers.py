"""Waiting for a Ray job without holding a worker slot, with an eye on the allocation that it lives in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from llm_bridge.ray.away import RAY_AWAY
from llm_bridge.ray.by_dashboard import ByDashboard
from llm_bridge.ray.by_files import ByFiles
from llm_bridge.ray.client import RayRefused, RayTarget, ray_client
from llm_bridge.ray.submission import stop_and_wait
from llm_bridge.ray.words import CANNOT_START
from llm_bridge.slurm.cancel import CANCEL_SECONDS, go_on_closing, to_the_end
from llm_bridge.slurm.hang import notice_of
from llm_bridge.slurm.triggers import EARLIEST_EVENT_SECONDS, TERMINAL, task_state


class RayJobTrigger(BaseTrigger):
    """Follow one Ray job; the event says how it ended, or that its allocation did.

    Stops the job when the user marks the task (``on_kill``) and when ``deadline`` passes. Never on a restart of the
    triggerer.

    :param target: :class:`~llm_bridge.ray.client.RayTarget` as a dict.
    :param submission_id: Ray's id of the job.
    :param directory: the submission's, on the cluster; None for a cluster that is not a Slurm job of ours.
    :param poll_seconds: between two looks at the job's status.
    :param deadline: epoch seconds; None for no limit.
    :param own_stage: stage directory of the Ray cluster's Slurm job where that is this task's own: whatever ends the
        waiting ends that job too.
    :param pending_until: epoch seconds after which a job that asks for what no node of the cluster has is given up;
        None for never.
    :param hang: :class:`~llm_bridge.config.hang.Hang` as a dict: when the job counts as hung; None for never.
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

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "llm_bridge.ray.triggers.RayJobTrigger",
            {
                "target": self.target,
                "submission_id": self.submission_id,
                "directory": self.directory,
                "poll_seconds": self.poll_seconds,
                "deadline": self.deadline,
                "own_stage": self.own_stage,
                "pending_until": self.pending_until,
                "hang": self.hang,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        began = time.monotonic()
        event = await self.outcome()
        await asyncio.sleep(max(0.0, began + EARLIEST_EVENT_SECONDS - time.monotonic()))
        yield TriggerEvent(event)

    async def outcome(self) -> dict[str, Any]:
        """Follow the job to its end, and see that a cluster of our own is gone; the event's payload."""
        target = RayTarget(**self.target)
        left = None if self.deadline is None else max(0.0, self.deadline - time.time())
        try:
            async with asyncio.timeout(left):
                if self.directory:
                    found = await ByFiles(
                        self,
                        target,
                        self.submission_id,
                        self.directory,
                        self.poll_seconds,
                        self.pending_until,
                    ).outcome()
                else:
                    found = await ByDashboard(
                        self, target, self.submission_id, self.poll_seconds, self.pending_until
                    ).outcome()
        except TimeoutError:
            self.log.warning("the task's own time limit has passed")
            if not self.own_stage:  # else it ends with its cluster
                await self._stop()
            found = {
                "status": "TIMEOUT",
                "notice": "the task's time limit has passed; the Ray job was stopped",
            }
        if found["status"] == CANNOT_START and not self.own_stage:
            await self._stop(patience=0)  # in case a node with what it wants joins now
        await self._end_own_cluster(None)
        empty = dict.fromkeys(("job", "info", "reason", "result", "outcome", "cause", "hang"))
        known = {
            "submission_id": self.submission_id,
            "target": self.target,
            "directory": self.directory,
            "own": self.own_stage is not None,
        }
        if notice := notice_of(found.get("hang")):
            found["notice"] = notice
        return {"notice": "", "last_lines": [], **empty, **known, **found}

    async def on_kill(self) -> None:
        """As :meth:`SlurmJobTrigger.on_kill`: stop the job only if the task really was marked."""
        await to_the_end(self._killed())

    async def _killed(self) -> None:
        state = await task_state(self)
        if state not in TERMINAL:
            self.log.info("the task is %s: Ray job %s is left alone", state, self.submission_id)
            return
        self.log.info("the task was marked %s: stopping Ray job %s", state, self.submission_id)
        await self.stop(CANCEL_SECONDS)

    async def end_hung(self) -> None:
        """End a job that hangs; with its cluster where Ray itself cannot end it, because a part of it hangs, too."""
        if self.own_stage:
            await self._end_own_cluster(CANCEL_SECONDS)
            return
        cluster, directory = self.target.get("cluster"), self.target.get("directory")
        if await self._stop() or not (cluster and directory):
            return
        self.log.warning("Ray does not end it: cancelling its cluster, Slurm job %s", self.target["job_id"])
        go_on_closing(cluster, str(PurePosixPath(directory).parent))

    async def stop(self, patience: float = CANCEL_SECONDS) -> None:
        """End the job, and a cluster of our own with it; going on with that when ``patience`` seconds are over."""
        if self.own_stage:
            await self._end_own_cluster(patience)
        else:
            await self._stop()

    async def _end_own_cluster(self, patience: float | None) -> None:
        """Cancel the Slurm job of a cluster of our own, if there is one."""
        if not self.own_stage:
            return
        self.log.info("ending the Ray cluster that this task brought up: Slurm job %s", self.target["job_id"])
        closing = go_on_closing(self.target["cluster"], self.own_stage)
        done, _ = await asyncio.wait({closing}, timeout=patience)
        if done:
            self.log.info("Slurm job %s is gone", self.target["job_id"])
        else:
            self.log.warning("Slurm job %s has not ended yet: cancelling it goes on", self.target["job_id"])

    async def _stop(self, patience: float = CANCEL_SECONDS) -> bool:
        """Have Ray stop the job, and see whether it has ended within ``patience`` seconds; 0 does not look."""
        try:
            async with ray_client(RayTarget(**self.target)) as client:
                ended = await stop_and_wait(client, self.submission_id, patience)
        except (RayRefused, *RAY_AWAY) as error:
            self.log.warning("could not stop Ray job %s: %s", self.submission_id, error)
            return False
        if ended and patience:
            self.log.info("Ray job %s has ended", self.submission_id)
        elif patience:
            self.log.warning("Ray job %s was told to stop, but has not ended yet", self.submission_id)
        return ended
