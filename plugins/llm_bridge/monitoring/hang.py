"""Hang detection: a job that runs and can be polled, and whose output does not grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from llm_bridge.config.hang import Hang
from llm_bridge.monitoring.log_relay import LogRelay
from llm_bridge.monitoring.notify import notify_job, write_attempt_file
from llm_bridge.monitoring.stack_dump import dump_stacks
from llm_bridge.notifications.message import duration
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.slurm.events import HangReport
from llm_bridge.slurm.status import JobInfo

# The poller's longest interval while the login node answers; a longer gap means that it was unreachable.
MAX_GAP_SECONDS = 60.0
# Last output lines in an alert, and as many stack lines.
MAX_ALERT_LINES = 10


class IdleTimer:
    """Measures for how long a job has written no output while it ran and was polled.

    Only polls count: time in which the job was not polled (login node unreachable, triggerer stopped) does not.

    Args:
        hang: The limits.
        starts_with_output: Do not count before the first output: what runs inside an allocation may have to wait there.
        clock: Returns seconds; monotonic.

    Attributes:
        seconds: For how long the job has been idle.
        running: Whether the job runs; set by the owner of the timer.
        saw_step: Whether the training has reported a step; set by the owner of the timer.
    """

    def __init__(
        self,
        hang: Hang,
        *,
        starts_with_output: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = 0.0
        self.running = False
        self.saw_step = False
        self._hang = hang
        self._size = 0 if starts_with_output else -1
        self._needs_output = starts_with_output
        self._clock = clock
        self._last_poll: float | None = None

    def observe(self, size: int) -> None:
        """Take the result of one poll.

        Args:
            size: Of the whole output, in bytes: it grows also where the relay leaves lines out.
        """
        now = self._clock()
        # At most a quarter of the limit, so that one gap does not reach even a short limit.
        max_gap = min(MAX_GAP_SECONDS, self.limit_seconds / 4)
        gap = 0.0 if self._last_poll is None else min(now - self._last_poll, max_gap)
        self._last_poll = now
        if size != self._size or not self.running or (self._needs_output and not size):
            self.seconds = 0.0
        else:
            self.seconds += gap
        self._size = size

    @property
    def limit_seconds(self) -> float:
        """Idle time from which on the job counts as hung; longer until the first step."""
        return 60 * (self._hang.minutes + (0 if self.saw_step else self._hang.start_minutes))

    @property
    def expired(self) -> bool:
        """Return whether the job counts as hung."""
        return self.seconds >= self.limit_seconds


@dataclass(frozen=True)
class JobSubject:
    """The job that monitors watch, as its follower describes it.

    Attributes:
        ti: The task instance that waits; None outside of a triggerer.
        log: The trigger's logger.
        cluster: Name of the cluster file; None for a Ray cluster that is no Slurm job of llm-bridge.
        job_id: The Slurm job's, or the Ray cluster's for a Ray job; None where there is none.
        directory: The attempt's, on the cluster; None where there is none.
        name: For people.
        last: Returns the output's last lines.
        step: Returns the newest step of a training as a sentence, or "".
    """

    ti: Any
    log: Any
    cluster: str | None
    job_id: str | None
    directory: str | None
    name: str
    last: Callable[[], list[str]]
    step: Callable[[], str]

    @classmethod
    def from_trigger(
        cls,
        trigger: Any,
        relay: LogRelay,
        cluster: str | None,
        job_id: str | None,
        directory: str | None,
        name: str,
    ) -> JobSubject:
        """Return the subject for a job that ``trigger`` follows and whose output ``relay`` shows.

        Args:
            trigger: Its task instance and its logger are used.
            relay: Has the last lines and the newest step.
            cluster: As in :class:`JobSubject`, like the arguments after it.
            job_id: See there.
            directory: See there.
            name: See there.
        """
        ti = getattr(trigger, "task_instance", None)
        return cls(ti, trigger.log, cluster, job_id, directory, name, lambda: relay.last, lambda: relay.step)


class HangMonitor:
    """Sends one alert when a job hangs or, where that is configured, ends the job.

    Use as an asynchronous context manager while the job is followed. A job that is ended causes no alert here: its task
    fails because of it, and that alert also has the next action (``llm_bridge.notifications.callbacks``).

    The idle time starts at zero when a triggerer is restarted. Without ``hang`` the monitor does nothing.

    Args:
        hang: The limits and the action; None for no monitoring.
        job: The job that is followed.
        end: Ends the job; the follower notices its end.
        starts_with_output: As for :class:`IdleTimer`.

    Attributes:
        found: While the job hangs, the report for the trigger's event.
    """

    def __init__(
        self,
        hang: Hang | None,
        job: JobSubject,
        end: Callable[[], Awaitable[None]],
        *,
        starts_with_output: bool = False,
    ) -> None:
        self.found: HangReport | None = None
        self._hang = hang
        self._job = job
        self._end = end
        self._idle = IdleTimer(hang, starts_with_output=starts_with_output) if hang else None
        self._expired = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._nodes = ""

    async def __aenter__(self) -> HangMonitor:
        if self._hang:
            self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def update_state(self, info: JobInfo) -> None:
        """Take the job's state from Slurm: a job that is pending or suspended does not hang."""
        self._nodes = info.nodes or self._nodes
        if self._idle:
            self._idle.running = info.state == "RUNNING"

    def mark_running(self) -> None:
        """Take the job as running where its state does not come from Slurm."""
        if self._idle:
            self._idle.running = True

    def observe(self, size: int) -> None:
        """Take the result of one poll, as :meth:`IdleTimer.observe`; the poller's ``on_poll``.

        Args:
            size: Of the whole output, in bytes.
        """
        if not self._idle:
            return
        self._idle.saw_step = self._idle.saw_step or bool(self._job.step())
        self._idle.observe(size)
        if self._idle.expired:
            self._expired.set()
        elif self.found and not self.found.ended and not self._idle.seconds:
            self._job.log.info("%s no longer hangs: new output after %s", self._job.name, self.found.duration)
            self.found = None
            self._expired.clear()

    async def _run(self) -> None:
        try:
            await self._watch()
        except Exception:  # neither the job nor waiting for it may end because of this
            self._job.log.exception("stopped watching %s for a hang", self._job.name)

    async def _watch(self) -> None:
        while True:
            await self._expired.wait()
            if self.found is None:
                await self._report()
            await asyncio.sleep(1.0)

    async def _report(self) -> None:
        assert self._hang and self._idle
        job = self._job
        idle, step = duration(self._idle.seconds), job.step()
        stacks = await dump_stacks(job.cluster, job.job_id)
        if not self._idle.expired:  # new output during the stack dump
            self._expired.clear()
            return
        what = f"{job.name} may hang: no output and no new step for {idle}"
        self.found = HangReport(duration=idle, nodes=self._nodes, step=step, stacks=tuple(stacks))
        job.log.warning("%s", what)
        for line in stacks:
            job.log.warning("[stack] %s", line)
        if self._hang.action == "report":
            await self._notify(what, self.found)
        else:
            await self._end_hung(self.found)

    async def _notify(self, what: str, found: HangReport) -> None:
        job = self._job
        facts = [
            ("Class", "hang"),
            ("Last line", (job.last() or ["(no output)"])[-1]),
            ("Last step", found.step),
            ("Node", found.nodes),
            ("Next", "nothing is cancelled: the job runs on (on_hang: report)"),
        ]
        lines = [*job.last()[-MAX_ALERT_LINES:], *found.stacks[:MAX_ALERT_LINES]]
        await notify_job(
            job.ti, "hang", what, facts, cluster=job.cluster, directory=job.directory, lines=lines
        )

    async def _end_hung(self, found: HangReport) -> None:
        """End the job; the follower leaves this monitor's context once the job has ended."""
        job = self._job
        self.found = replace(found, ended=True)
        job.log.warning("cancelling %s because it hangs (on_hang: retry)", job.name)
        # Without the file, a triggerer that takes over now would diagnose a job that "a person cancelled".
        reason = Reason(found.notice, kind="hang")
        await write_attempt_file(job.cluster, job.directory, attempt_dir.REASON, attempt_dir.as_json(reason))
        await self._end()
