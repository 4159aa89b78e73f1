"""Alert when a job waits too long in Slurm's queue."""

from __future__ import annotations

import asyncio
from datetime import datetime

from llm_bridge.exceptions import ClusterUnavailable
from llm_bridge.monitoring.hang import JobSubject
from llm_bridge.monitoring.notify import notify_job
from llm_bridge.notifications.config import load_alerts
from llm_bridge.notifications.message import duration
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.status import JobInfo, Phase

# Calls of the site's rate limit (rpc_budget) that are left to submissions and cancels; as the poller's.
RESERVE = 5
# Between two queries while Slurm is unavailable.
RETRY_INTERVAL_SECONDS = 60.0


class QueueWaitMonitor:
    """Sends one alert when a job has waited for ``queued_after_hours`` of ``include/alerts.yaml``.

    The alert has Slurm's reason and its estimate of the start. Use as an asynchronous context manager while the job is
    followed. Costs one squeue for a job that waits that long, none for others.

    Args:
        job: The job that is followed.
    """

    def __init__(self, job: JobSubject) -> None:
        self._job = job
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> QueueWaitMonitor:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stop()

    async def update_state(self, info: JobInfo) -> None:
        """Take the job's state from Slurm: the time counts while it is pending."""
        if info.phase is not Phase.WAITING:
            await self._stop()
        elif self._task is None:
            self._task = asyncio.create_task(self._run(info.waited))

    async def _stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self, waited: float) -> None:
        try:
            await self._wait(waited)
        except Exception:  # neither the job nor waiting for it may end because of this
            self._job.log.exception("stopped watching the queue wait of %s", self._job.name)

    async def _wait(self, waited: float) -> None:
        alerts = await asyncio.to_thread(load_alerts)
        if alerts.silent or alerts.queued_after_hours is None:
            return
        limit = alerts.queued_after_hours * 3600
        while True:
            await asyncio.sleep(max(0.0, limit - waited))
            info = await self._query()
            if info is None:
                await asyncio.sleep(RETRY_INTERVAL_SECONDS)
                continue
            if info.phase is not Phase.WAITING:
                return
            waited = info.waited
            if waited >= limit:
                await self._notify(info)
                return

    async def _query(self) -> JobInfo | None:
        """Return the job's state in Slurm now; None while Slurm is unavailable."""
        job = self._job
        assert job.cluster and job.job_id
        try:
            async with open_client(job.cluster) as client:
                found = await client.find([job.job_id], reserve=RESERVE)
        except ClusterUnavailable:
            return None
        return found.get(job.job_id)

    async def _notify(self, info: JobInfo) -> None:
        job = self._job
        # squeue(1), StartTime: the expected one for a pending job. In the cluster's own time, as it was printed.
        start = datetime.fromtimestamp(info.started).isoformat(" ", "minutes") if info.started else ""
        what = f"{job.name} has been pending in Slurm's queue for {duration(info.waited)}"
        reason = info.reason or "(none)"
        job.log.warning("%s; Slurm's reason: %s; expected start: %s", what, reason, start or "unknown")
        facts = [
            ("Slurm's reason", reason),
            ("Expected start", f"{start} (the cluster's time)" if start else "unknown"),
            ("Cluster", job.cluster),
            ("Next", "nothing is cancelled: the job stays in the queue"),
        ]
        await notify_job(job.ti, "queued", what, facts, cluster=job.cluster, directory=job.directory)
