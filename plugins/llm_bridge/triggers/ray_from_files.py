"""Follow a Ray job on a cluster of llm-bridge: its files, its cluster's Slurm job, and Ray's own status."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import LoginNodeUnreachable, RayRequestError, RayUnavailable
from llm_bridge.monitoring.hang import HangMonitor, JobSubject
from llm_bridge.monitoring.log_relay import LogRelay
from llm_bridge.monitoring.run_record import RunRecord
from llm_bridge.monitoring.wandb_run import store_address
from llm_bridge.ray import cluster_job
from llm_bridge.ray.client import RayJobDetails, ray_client
from llm_bridge.ray.events import RayEndReason, RayJobEnd
from llm_bridge.ray.schedulability import unschedulable_reason
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome, Reason
from llm_bridge.slurm.events import EndReason
from llm_bridge.slurm.poller import ClusterPoller, poller_for
from llm_bridge.slurm.status import JobInfo, Phase
from llm_bridge.triggers.ray_follower import RayFollowContext

# When a node dies the driver often ends before Slurm reports the node: wait this long for Slurm to name the cause.
CAUSE_SECONDS = 15.0
# Maximum delay between Ray's and the files' reports of the same end.
SAME_END_SECONDS = 10.0
# Log Ray's reason for a job that has not started after this.
PENDING_NOTICE_SECONDS = 60.0
# Minimum pause before an unreachable dashboard is polled again.
MIN_RETRY_INTERVAL_SECONDS = 5.0
# Poll interval of Ray once the driver has ended.
FAST_POLL_INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class _AllocationEnd:
    """End of the cluster's Slurm job, or its requeue.

    Attributes:
        info: State of the Slurm job; None if unknown.
        notice: One line that explains an end without ``info``.
        forgotten: True if Slurm has lost the job.
        reason: The Slurm job's own explanation.
        outcome: Outcome file of the Slurm job.
    """

    info: JobInfo | None
    notice: str
    forgotten: bool
    reason: Reason | None
    outcome: Outcome | None


class FileFollower:
    """Follower of one job.

    Output and end are read from files in the submission's directory (``remote/templates/ray_job.sh.j2``), which outlive
    the cluster. Ray is polled seldom, for the cases that leave no files: a driver that was killed (SIGKILL) or that
    never started.

    Args:
        context: Job to follow.
        directory: The submission's directory on the cluster.
    """

    def __init__(self, context: RayFollowContext, directory: str) -> None:
        self._context = context
        self._log = context.trigger.log
        self._target = context.target
        self._submission_id = context.submission_id
        self._directory = directory
        self._lines: tuple[str, ...] = ()
        self._ran_on = ""
        self._relay = LogRelay(context.trigger, f"{directory}/{attempt_dir.OUTPUT}")
        self._record = RunRecord(context.trigger, directory, self._relay)
        subject = JobSubject.from_trigger(
            context.trigger,
            self._relay,
            self._target.cluster,
            self._target.job_id,
            directory,
            f"Ray job {context.submission_id}",
        )
        self._hang = HangMonitor(context.hang, subject, context.end_hung_job, starts_with_output=True)

    async def outcome(self) -> RayJobEnd:
        """Follow the job until it or its cluster ends; return its state."""
        assert self._target.cluster
        poller = poller_for(await asyncio.to_thread(load_cluster, self._target.cluster))
        over = asyncio.Event()
        driver = asyncio.create_task(self._follow_driver(poller, over))
        slurm = asyncio.create_task(self._follow_allocation(poller))
        ray = asyncio.create_task(self._poll_ray(over))
        tasks: set[asyncio.Task[Any]] = {driver, slurm, ray}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not driver.done():
                await asyncio.wait({driver}, timeout=SAME_END_SECONDS)
            over.set()
            files = await driver
            outcome: Outcome | None = attempt_dir.parse(Outcome, files.get(attempt_dir.OUTCOME))
            if outcome and outcome.exit_code == 0:
                return self._end(RayEndReason.SUCCEEDED, files)
            await asyncio.wait({slurm}, timeout=CAUSE_SECONDS)
            if slurm.done() and not _before(outcome, slurm.result().outcome):
                return await self._lost_cluster(slurm.result(), files)
            await asyncio.wait({ray}, timeout=SAME_END_SECONDS)
            end = self._end(RayEndReason.FAILED, files)
            if not ray.done():
                return end
            seen = ray.result()
            return replace(end, end=seen.end, notice=seen.notice, job=seen.job)
        finally:
            # Repeat: a library below may swallow a cancellation, and the task would poll Ray for ever.
            while pending := {task for task in tasks if not task.done()}:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=1)
            # Retrieve all exceptions; asyncio warns of those that are never retrieved.
            await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, end: RayEndReason, files: dict[str, Any]) -> RayJobEnd:
        return RayJobEnd(
            end=end,
            outcome=attempt_dir.parse(Outcome, files.get(attempt_dir.OUTCOME)),
            result=files.get(attempt_dir.RESULT),
            reason=attempt_dir.parse(Reason, files.get(attempt_dir.REASON)),
            last_lines=self._lines,
            hang=self._hang.found,
        )

    async def _lost_cluster(self, allocation: _AllocationEnd, files: dict[str, Any]) -> RayJobEnd:
        assert self._target.cluster
        end = self._end(RayEndReason.ALLOCATION_ENDED, files)
        cause, info = "", allocation.info
        if info:
            cause = await cluster_job.cause(self._target.cluster, info, self._ran_on or info.nodes)
        return replace(
            end,
            notice=allocation.notice,
            info=info,
            forgotten=allocation.forgotten,
            cause=cause,
            outcome=allocation.outcome,
            # The job's own reason if the cluster has none: the job was ended with its cluster because it hung.
            reason=allocation.reason or end.reason,
        )

    async def _follow_driver(self, poller: ClusterPoller, over: asyncio.Event) -> dict[str, Any]:
        """Relay the driver's output until it ends; return name -> content of the files that it wrote."""
        assert self._target.job_id
        relay = self._relay
        files: dict[str, Any] = {}
        await relay.repeat_earlier(poller.cluster)
        following = poller.follow(
            self._target.job_id,
            self._directory,
            (attempt_dir.WANDB_RUN, *self._record.files),
            lease=relay.lease,
            resume=relay.resume,
            inner_end=over,
            on_poll=self._hang.observe,
            measures=await self._record.load(),
        )
        async with aclosing(following) as updates, self._hang:
            async for update in updates:
                relay.show(update)
                await self._record.take(update)
                await store_address(self._context.trigger, update.files)
                self._lines = tuple(relay.last)
                if update.notice:
                    self._log.warning("%s", update.notice)
                files |= {name: content for name, content in update.files.items() if content is not None}
        relay.finish()
        return files

    async def _follow_allocation(self, poller: ClusterPoller) -> _AllocationEnd:
        """Wait until the Slurm job of the cluster ends or is requeued; both end all Ray jobs on it."""
        assert self._target.job_id and self._target.directory
        files: dict[str, Any] = {}
        first: JobInfo | None = None
        last = None
        following = poller.follow(
            self._target.job_id,
            self._target.directory,
            (attempt_dir.REASON,),
            output=False,
            measures={},
        )
        async with aclosing(following) as updates:
            async for update in updates:
                last = update
                await self._record.take_gpu_use(update.measures)
                files |= update.files
                if update.info is None:
                    continue
                self._hang.update_state(update.info)
                if first and (update.info.restarts > first.restarts or update.info.phase is Phase.WAITING):
                    break
                first = first or (update.info if update.info.phase is Phase.RUNNING else None)
                self._ran_on = first.nodes if first else ""
        assert last
        return _AllocationEnd(
            last.info,
            last.notice,
            last.end is EndReason.FORGOTTEN,
            attempt_dir.parse(Reason, files.get(attempt_dir.REASON)),
            attempt_dir.parse(Outcome, files.get(attempt_dir.OUTCOME)),
        )

    async def _poll_ray(self, over: asyncio.Event) -> RayJobEnd:
        """Poll Ray, faster once ``over`` is set because the driver has ended; return the end that Ray reports."""
        started, logged = time.monotonic(), ""
        interval = self._context.poll_seconds
        while True:
            try:
                async with ray_client(self._target) as client:
                    while True:
                        job = await client.job(self._submission_id)
                        if job is None:
                            notice = (
                                f"Ray has no job {self._submission_id}: Slurm job {self._target.job_id} runs a "
                                "new Ray cluster"
                            )
                            return RayJobEnd(RayEndReason.LOST, notice)
                        if job.has_ended:
                            return RayJobEnd(RayEndReason(job.status), job=job)
                        reason = await unschedulable_reason(
                            client, job, self._submission_id, self._context.pending_until
                        )
                        if reason:
                            return RayJobEnd(RayEndReason.CANNOT_START, reason, job=job)
                        late = time.monotonic() - started > PENDING_NOTICE_SECONDS
                        logged = self._log_pending(logged, job if late else None)
                        await _sleep(interval, over)
            except (RayRequestError, RayUnavailable, LoginNodeUnreachable) as error:
                if logged != "unreachable":
                    self._log.warning("Ray dashboard unreachable; following the job by its files: %s", error)
                logged = "unreachable"
                await _sleep(max(interval, MIN_RETRY_INTERVAL_SECONDS), over)

    def _log_pending(self, logged: str, job: RayJobDetails | None) -> str:
        """Log Ray's reason for a job that has not started, once.

        Args:
            logged: Last logged reason, or "unreachable".
            job: Details that Ray reports; None while it is too early to log.

        Returns:
            The new value of ``logged``.
        """
        if logged == "unreachable":
            self._log.info("Ray dashboard answers again")
        message = (job.message or "").strip() if job and job.status == "PENDING" else ""
        if message and message != logged:
            self._log.info("Ray has not started job %s yet: %s", self._submission_id, message)
        return message


async def _sleep(seconds: float, over: asyncio.Event) -> None:
    if over.is_set():
        await asyncio.sleep(min(FAST_POLL_INTERVAL_SECONDS, seconds))
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # wait_for can swallow a cancellation (Python 3.11)
            await over.wait()


def _before(job: Outcome | None, cluster: Outcome | None) -> bool:
    """Return True if the job ended long before its cluster, so that the cluster's end was not the cause."""
    return bool(job and cluster and cluster.ended - job.ended > CAUSE_SECONDS)
