"""Notice that a job waits too long in Slurm's queue."""

from __future__ import annotations

import asyncio
from datetime import datetime

from llm_bridge.alerts.config import load_alerts
from llm_bridge.config.load import load_cluster
from llm_bridge.progress import duration
from llm_bridge.slurm.client import SlurmClient, SlurmUnreachable
from llm_bridge.slurm.hang import Followed
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.states import Phase
from llm_bridge.slurm.told import tell_of_job
from llm_bridge.transport import LoginNodeUnreachable, connect

# Calls of the site's ration to leave to others; as the watcher's.
RESERVE = 5
AGAIN_SECONDS = 60.0


class QueueWatch:
    """Tells once that a job has waited for ``queued_after_hours`` of ``include/alerts.yaml``: with Slurm's reason and
    its estimate of the start. ``async with`` it while the job is followed.

    Costs one squeue for a job that waits so long, none for others.
    """

    def __init__(self, job: Followed) -> None:
        self._job = job
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> QueueWatch:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stop()

    async def state(self, info: JobInfo) -> None:
        """Slurm's word on the job."""
        if info.phase is not Phase.WAITING:
            await self._stop()
        elif self._task is None:
            self._task = asyncio.create_task(self._or_say_why_not(info.waited))

    async def _stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _or_say_why_not(self, waited: float) -> None:
        try:
            await self._wait(waited)
        except Exception:  # the job goes on, and so does the waiting
            self._job.log.exception("how long %s waits in the queue is not watched any more", self._job.name)

    async def _wait(self, waited: float) -> None:
        alerts = await asyncio.to_thread(load_alerts)
        if alerts.silent or alerts.queued_after_hours is None:
            return
        limit = alerts.queued_after_hours * 3600
        while True:
            await asyncio.sleep(max(0.0, limit - waited))
            info = await self._ask()
            if info is None:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if info.phase is not Phase.WAITING:
                return
            waited = info.waited
            if waited >= limit:
                await self._tell(info)
                return

    async def _ask(self) -> JobInfo | None:
        """What Slurm says of the job now; None while it cannot be asked."""
        job = self._job
        assert job.cluster and job.job_id
        cluster = await asyncio.to_thread(load_cluster, job.cluster)
        try:
            async with connect(cluster) as transport:
                found = await SlurmClient(cluster, transport).find([job.job_id], reserve=RESERVE)
        except (LoginNodeUnreachable, SlurmUnreachable):
            return None
        return found.get(job.job_id)

    async def _tell(self, info: JobInfo) -> None:
        job = self._job
        # squeue(1), StartTime: of a job that waits, the expected one. In the cluster's own time, as it was printed.
        start = datetime.fromtimestamp(info.started).isoformat(" ", "minutes") if info.started else ""
        said = f"{job.name} has waited for {duration(info.waited)} in the queue"
        why = info.reason or "(none)"
        job.log.warning("%s; Slurm's reason: %s; expected start: %s", said, why, start or "unknown")
        facts = [
            ("Slurm's reason", why),
            ("Expected start", f"{start} (the cluster's time)" if start else "Slurm does not know"),
            ("Cluster", job.cluster),
            ("Next", "it goes on waiting"),
        ]
        await tell_of_job(job.ti, "queued", said, facts, cluster=job.cluster, directory=job.directory)
