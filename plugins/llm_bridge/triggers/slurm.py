"""Wait for a Slurm job without holding a worker slot."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import PurePosixPath
from typing import Any

from llm_bridge.config.hang import Hang
from llm_bridge.config.loader import load_cluster
from llm_bridge.monitoring.hang import HangMonitor, JobSubject
from llm_bridge.monitoring.log_relay import LogRelay
from llm_bridge.monitoring.queue_wait import QueueWaitMonitor
from llm_bridge.monitoring.run_record import RunRecord
from llm_bridge.monitoring.wandb_run import store_address
from llm_bridge.notifications.message import duration
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.slurm.cancellation import (
    CANCEL_SECONDS,
    close_and_wait,
    retry_while_unavailable,
    spawn_background,
)
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.events import EndReason, HangReport, SlurmJobEvent
from llm_bridge.slurm.poller import JobUpdate, poller_for
from llm_bridge.triggers.base import LlmBridgeTrigger


class SlurmJobTrigger(LlmBridgeTrigger):
    """Follow one Slurm job: relay its output to the task's log and fire a :class:`SlurmJobEvent` at its end.

    Cancels the job when the user marks the task (``on_kill``) and when ``deadline`` passes, which Airflow itself does
    not enforce while a task is deferred (airflow#69678); never when the triggerer restarts.

    Args:
        cluster: Name of the cluster file.
        job_id: Slurm's id of the job.
        directory: The attempt's directory on the cluster.
        ready_file: JSON file whose appearance fires the trigger while the job continues (a Ray cluster).
        deadline: Epoch seconds; None for no limit.
        cancel_on_kill: False for a sensor, whose job belongs to another task.
        hang: :class:`~llm_bridge.config.hang.Hang` as a dict: when the job counts as hung; None for never.
    """

    def __init__(
        self,
        cluster: str,
        job_id: str,
        directory: str,
        ready_file: str | None = None,
        deadline: float | None = None,
        cancel_on_kill: bool = True,
        hang: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.cluster = cluster
        self.job_id = job_id
        self.directory = directory
        self.ready_file = ready_file
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self.hang = hang
        self._last_state = ""
        self._relay: LogRelay | None = None

    async def outcome(self) -> dict[str, Any]:
        """Follow the job to its end, until it is ready, or until the deadline; return the event's payload."""
        left = None if self.deadline is None else max(0.0, self.deadline - time.time())
        try:
            async with asyncio.timeout(left):
                event = await self._follow()
        except TimeoutError:
            event = await self._time_out()
        return event.to_json()

    async def _follow(self) -> SlurmJobEvent:
        files: dict[str, Any] = {}
        relay = self._relay = LogRelay(self, f"{self.directory}/{attempt_dir.OUTPUT}")
        cluster = await asyncio.to_thread(load_cluster, self.cluster)
        subject = JobSubject.from_trigger(
            self, relay, self.cluster, self.job_id, self.directory, f"Slurm job {self.job_id}"
        )
        hang = HangMonitor(Hang(**self.hang) if self.hang else None, subject, lambda: self._cancel(None))
        record = RunRecord(self, self.directory, relay)
        await relay.repeat_earlier(cluster)
        following = poller_for(cluster).follow(
            self.job_id,
            self.directory,
            (*([self.ready_file] if self.ready_file else []), attempt_dir.WANDB_RUN, *record.files),
            lease=relay.lease,
            resume=relay.resume,
            on_poll=hang.observe,
            measures=await record.load(),
        )
        async with aclosing(following) as updates, hang, QueueWaitMonitor(subject) as queue:
            async for update in updates:
                relay.show(update)
                self._log_state(update)
                await store_address(self, update.files)
                if update.info:
                    hang.update_state(update.info)
                    await queue.update_state(update.info)
                files |= {name: content for name, content in update.files.items() if content is not None}
                ready = bool(self.ready_file and self.ready_file in files)
                await record.take(update, last=ready)
                if ready or update.end:
                    await relay.written()
                    end = EndReason.READY if ready else update.end
                    return self._event(end or EndReason.ENDED, update, files, relay, hang.found)
        raise AssertionError(
            f"the poller of cluster {self.cluster} ended without a last update of job {self.job_id}"
        )

    def _log_state(self, update: JobUpdate) -> None:
        if update.notice:
            self.log.warning("%s", update.notice)
        if update.info:
            reason = f" ({update.info.reason})" if update.info.reason else ""
            nodes = f" on {update.info.nodes}" if update.info.nodes else ""
            state = f"Slurm job {self.job_id} {update.info.meaning.meaning}{nodes}{reason}"
            if state != self._last_state:
                wait, start = update.info.expected_wait, ""
                if wait is not None:
                    left = max(0.0, wait - update.info.waited)
                    start = f"; Slurm expects its start in about {duration(left)}"
                self.log.info("%s%s", state, start)
            self._last_state = state

    def _event(
        self,
        end: EndReason,
        update: JobUpdate,
        files: dict[str, Any],
        relay: LogRelay,
        hang: HangReport | None,
    ) -> SlurmJobEvent:
        hung = hang is not None and hang.ended and end is not EndReason.READY
        result = files.get(self.ready_file or "") if end is EndReason.READY else files.get(attempt_dir.RESULT)
        return SlurmJobEvent(
            job_id=self.job_id,
            cluster=self.cluster,
            directory=self.directory,
            end=EndReason.HUNG if hung else end,
            info=update.info,
            notice=hang.notice if hang and hung else update.notice,
            ready_file=self.ready_file,
            result=result,
            reason=attempt_dir.parse(Reason, files.get(attempt_dir.REASON)),
            last_lines=tuple(relay.last),
            hang=hang,
        )

    async def _time_out(self) -> SlurmJobEvent:
        what = "cancelling" if self.cancel_on_kill else "no longer following"
        self.log.warning("task's time limit has passed; %s Slurm job %s", what, self.job_id)
        if self.cancel_on_kill:
            await self._cancel(None)
        return SlurmJobEvent(
            job_id=self.job_id,
            cluster=self.cluster,
            directory=self.directory,
            end=EndReason.TIMEOUT,
            notice="the task's own time limit has passed",
            ready_file=self.ready_file,
            cancelled=self.cancel_on_kill,
        )

    async def on_kill(self) -> None:
        """Cancel the job as :meth:`LlmBridgeTrigger.on_kill`; do nothing for a sensor."""
        if self.cancel_on_kill:
            await super().on_kill()

    async def kill(self) -> None:
        """Cancel the job; continues in the background when ``on_kill`` runs out of time."""
        await self._cancel(CANCEL_SECONDS)

    async def _cancel(self, seconds: float | None) -> None:
        done, _ = await asyncio.wait({spawn_background(self._end_job())}, timeout=seconds)
        if not done:
            self.log.warning("Slurm job %s has not ended yet; still cancelling it", self.job_id)

    async def _end_job(self) -> None:
        if not await retry_while_unavailable(self._is_current_follower):
            # The task may have resumed and succeeded, because the other triggerer's trigger has found the job ready.
            self.log.info("another triggerer follows Slurm job %s; not cancelling it", self.job_id)
            return
        self.log.info("cancelling Slurm job %s", self.job_id)
        # Close the attempt as well: a slurmctld that crashes now forgets the cancellation and starts the job again.
        await close_and_wait(self.cluster, str(PurePosixPath(self.directory).parent))
        self.log.info("Slurm job %s has ended", self.job_id)

    async def _is_current_follower(self) -> bool:
        lease = self._relay.lease if self._relay else None
        if not self._relay or not lease:
            return True
        async with open_client(self.cluster) as client:
            path = f"{self.directory}/{attempt_dir.log_lease(lease['try'])}"
            return self._relay.holds(await client.read_json(path))
