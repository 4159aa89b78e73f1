"""Follow a Ray job on a cluster of ours: by the files that it writes, by Slurm's word on its cluster, and by Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from llm_bridge.config.hang import Hang
from llm_bridge.config.load import load_cluster
from llm_bridge.ray import allocation
from llm_bridge.ray.client import ENDED, RayRefused, RayTarget, RayUnreachable, ray_client
from llm_bridge.ray.pending import given_up
from llm_bridge.ray.words import CANNOT_START
from llm_bridge.slurm.hang import Followed, HangWatch
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.output import Output
from llm_bridge.slurm.states import Phase
from llm_bridge.slurm.watcher import Watcher, watcher_for
from llm_bridge.transport import LoginNodeUnreachable

if TYPE_CHECKING:
    from llm_bridge.ray.triggers import RayJobTrigger

# When a node dies, the driver often ends before Slurm says so: give Slurm this long to name the real cause.
CAUSE_SECONDS = 15.0
# What Ray says and what the files say of the same end may be so far apart.
SAME_END_SECONDS = 10.0
# A job that has not started after so long is worth a word.
LATE_SECONDS = 60.0


class ByFiles:
    """Follows one job.

    Output and end come from files beside the job's settings (``include/jobs/ray_job.sh``), so they are there whatever
    became of the cluster. Ray is asked seldom, for what the files cannot tell: a driver that was killed outright, or
    that Ray could never start.

    :param trigger: whose log the output goes to.
    :param directory: the submission's, on the cluster.
    :param poll_seconds: between two questions to Ray.
    :param pending_until: epoch seconds after which a job that can never start is given up; None for never.
    """

    def __init__(
        self,
        trigger: RayJobTrigger,
        target: RayTarget,
        submission_id: str,
        directory: str,
        poll_seconds: float,
        pending_until: float | None = None,
    ) -> None:
        self._trigger = trigger
        self._log = trigger.log
        self._target = target
        self._submission_id = submission_id
        self._directory = directory
        self._poll_seconds = poll_seconds
        self._pending_until = pending_until
        self._lines: list[str] = []
        self._ran_on = ""
        self._output = Output(trigger, f"{directory}/output.log")
        name = f"Ray job {submission_id}"
        job = Followed.by(trigger, self._output, target.cluster, target.job_id, directory, name)
        hang = Hang(**trigger.hang) if trigger.hang else None
        self._hang = HangWatch(hang, job, trigger.end_hung, starts_with_output=True)

    async def outcome(self) -> dict[str, Any]:
        """Follow it to its end; ``status`` and what goes with it."""
        assert self._target.cluster
        watcher = watcher_for(await asyncio.to_thread(load_cluster, self._target.cluster))
        over = asyncio.Event()
        driver = asyncio.create_task(self._follow_driver(watcher, over))
        slurm = asyncio.create_task(self._follow_allocation(watcher))
        ray = asyncio.create_task(self._ask_ray(over))
        tasks: set[asyncio.Task[Any]] = {driver, slurm, ray}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not driver.done():
                await asyncio.wait({driver}, timeout=SAME_END_SECONDS)
            over.set()
            files = await driver
            end = files.get("outcome.json")
            if end and end["exit_code"] == 0:
                return self._found("SUCCEEDED", files)
            await asyncio.wait({slurm}, timeout=CAUSE_SECONDS)
            if slurm.done() and not _before(end, slurm.result()["outcome"]):
                lost = await self._with_cause(slurm.result())
                # The job's own word where the cluster has none: it was ended with its cluster because it hung.
                reason = lost["reason"] or files.get("reason.json")
                return self._found("ALLOCATION_ENDED", files, **{**lost, "reason": reason})
            await asyncio.wait({ray}, timeout=SAME_END_SECONDS)
            return {**self._found("FAILED", files), **(ray.result() if ray.done() else {})}
        finally:
            # Again and again: a library below may swallow a cancellation, and the task would ask Ray for ever.
            while pending := {task for task in tasks if not task.done()}:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=1)
            await asyncio.gather(
                *tasks, return_exceptions=True
            )  # so that none of their errors is "never retrieved"

    def _found(self, status: str, files: dict[str, Any], **found: Any) -> dict[str, Any]:
        own = {name: files.get(f"{name}.json") for name in ("outcome", "result", "reason")}
        return {"status": status, "last_lines": self._lines, "hang": self._hang.found, **own, **found}

    async def _follow_driver(self, watcher: Watcher, over: asyncio.Event) -> dict[str, Any]:
        """Show the driver's output; the files that it left."""
        assert self._target.job_id
        output = self._output
        files: dict[str, Any] = {}
        following = watcher.follow(
            self._target.job_id,
            self._directory,
            note=output.note,
            resume=output.resume,
            part=over,
            pulse=self._hang.look,
        )
        async with aclosing(following) as updates, self._hang:
            async for update in updates:
                output.show(update)
                self._lines = output.last
                if update.notice:
                    self._log.warning("%s", update.notice)
                files |= {name: content for name, content in update.files.items() if content is not None}
        return files

    async def _follow_allocation(self, watcher: Watcher) -> dict[str, Any]:
        """Wait until the Slurm job of the cluster has ended or starts anew; both end all Ray jobs on it."""
        assert self._target.job_id and self._target.directory
        files: dict[str, Any] = {}
        first: JobInfo | None = None
        last = None
        following = watcher.follow(
            self._target.job_id, self._target.directory, ("reason.json",), output=False
        )
        async with aclosing(following) as updates:
            async for update in updates:
                last = update
                files |= update.files
                if update.info is None:
                    continue
                self._hang.state(update.info)
                if first and (update.info.restarts > first.restarts or update.info.phase is Phase.WAITING):
                    break
                first = first or (update.info if update.info.phase is Phase.RUNNING else None)
                self._ran_on = first.nodes if first else ""
        assert last
        return {
            "info": last.info.as_dict() if last.info else None,
            "reason": files.get("reason.json"),
            "outcome": files.get("outcome.json"),
            "notice": last.notice,
        }

    async def _with_cause(self, found: dict[str, Any]) -> dict[str, Any]:
        if found["info"] is None:
            return found
        assert self._target.cluster
        info = JobInfo(**found["info"])
        cause = await allocation.cause(self._target.cluster, info, self._ran_on or info.nodes)
        return {**found, "cause": cause}

    async def _ask_ray(self, over: asyncio.Event) -> dict[str, Any]:
        """Ask now and then, and often once the driver is over; what Ray says of the job when it has ended."""
        began, said = time.monotonic(), ""
        while True:
            try:
                async with ray_client(self._target) as client:
                    while True:
                        job = await client.job(self._submission_id)
                        if job is None:
                            notice = (
                                f"Ray does not know it: Slurm job {self._target.job_id} has a new Ray cluster"
                            )
                            return {"status": "LOST", "notice": notice}
                        if job["status"] in ENDED:
                            return {"status": job["status"], "job": job}
                        why = await given_up(client, job, self._submission_id, self._pending_until)
                        if why:
                            return {"status": CANNOT_START, "job": job, "notice": why}
                        late = time.monotonic() - began > LATE_SECONDS
                        said = self._say(said, job if late else {})
                        await _sleep(self._poll_seconds, over)
            except (RayRefused, RayUnreachable, LoginNodeUnreachable) as error:
                if said != "away":
                    self._log.warning("Ray is away, its job is followed by its files alone: %s", error)
                said = "away"
                await _sleep(max(self._poll_seconds, 5.0), over)

    def _say(self, said: str, job: dict[str, Any]) -> str:
        """Say what Ray says of a job that has not started, once."""
        if said == "away":
            self._log.info("Ray answers again")
        message = (job.get("message") or "").strip() if job.get("status") == "PENDING" else ""
        if message and message != said:
            self._log.info("Ray has not started it yet: %s", message)
        return message


async def _sleep(seconds: float, over: asyncio.Event) -> None:
    if over.is_set():
        await asyncio.sleep(min(1.0, seconds))
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # wait_for can swallow a cancellation (Python 3.11)
            await over.wait()


def _before(job: dict[str, Any] | None, cluster: dict[str, Any] | None) -> bool:
    """Whether the job ended so long before its cluster that the cluster's end was not the cause."""
    return bool(job and cluster and cluster["ended"] - job["ended"] > CAUSE_SECONDS)
