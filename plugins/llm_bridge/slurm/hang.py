"""Notice that a job hangs: it runs, it can be seen, and its output does not grow."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from llm_bridge.config.hang import Hang
from llm_bridge.progress import duration
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.output import Output
from llm_bridge.slurm.stacks import stacks_of
from llm_bridge.slurm.told import tell_of_job, write_down

# The watcher's longest time between two looks while the login node answers; what is beyond that it was away.
MOST_GAP_SECONDS = 60.0
LINES_TOLD = 10


class Silence:
    """How long a job has been silent while it ran and was seen. Knows nothing of clocks that went on without it.

    :param starts_with_output: not even counted before the first output: what runs inside an allocation may wait there.
    """

    def __init__(
        self,
        hang: Hang,
        *,
        starts_with_output: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = 0.0
        self.stepped = False
        self.runs = False
        self._hang = hang
        self._size = 0 if starts_with_output else -1
        self._needs_output = starts_with_output
        self._clock = clock
        self._looked: float | None = None

    def look(self, size: int) -> None:
        """The output has been looked at; its size in bytes, so that not one line of a flood is missed."""
        now = self._clock()
        # A quarter, so that with a short limit, too, coming back alone does not reach it.
        most = min(MOST_GAP_SECONDS, self.limit / 4)
        gap = 0.0 if self._looked is None else min(now - self._looked, most)
        self._looked = now
        if size != self._size or not self.runs or (self._needs_output and not size):
            self.seconds = 0.0
        else:
            self.seconds += gap
        self._size = size

    @property
    def limit(self) -> float:
        """Seconds that are one too many."""
        return 60 * (self._hang.minutes + (0 if self.stepped else self._hang.start_minutes))

    @property
    def too_long(self) -> bool:
        return self.seconds >= self.limit


@dataclass(frozen=True)
class Followed:
    """What a follower knows of its job, for the report.

    :param ti: the task instance that waits; None outside of a triggerer.
    :param job_id: of the Slurm job, the Ray cluster's for a Ray job; None where there is none.
    :param directory: the attempt's, on the cluster.
    :param name: for people.
    :param last: gives the output's last lines.
    :param step: gives the newest step of a training as a sentence, or "".
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
    def by(
        cls,
        trigger: Any,
        output: Output,
        cluster: str | None,
        job_id: str | None,
        directory: str | None,
        name: str,
    ) -> Followed:
        """A job whose output ``trigger`` shows by ``output``."""
        ti = getattr(trigger, "task_instance", None)
        return cls(
            ti, trigger.log, cluster, job_id, directory, name, lambda: output.last, lambda: output.step
        )


def notice_of(hang: dict[str, Any] | None) -> str:
    """For an event's ``notice``, where the job was ended because it hung: how the diagnosis knows."""
    if not (hang and hang["ended"]):
        return ""
    return f"hang: no output and no new step for {hang['for']}" + (
        f", after {hang['step']}" if hang["step"] else ""
    )


class HangWatch:
    """Tells once that a job hangs or, where that is asked for, ends it. ``async with`` it while the job is followed.

    A job that is ended is not told from here: its task fails for it, and that says the same and what follows
    (``llm_bridge.alerts.occasions``); two messages of one hang would be one too many.

    Counts anew when a triggerer is restarted. Without ``hang`` it does nothing.

    :param end: ends the job; what becomes of it is noticed by whoever follows it.
    """

    def __init__(
        self,
        hang: Hang | None,
        job: Followed,
        end: Callable[[], Awaitable[None]],
        *,
        starts_with_output: bool = False,
    ) -> None:
        # While it hangs, what the trigger's event says of it (``event["hang"]``).
        self.found: dict[str, Any] | None = None
        self._hang = hang
        self._job = job
        self._end = end
        self._silence = Silence(hang, starts_with_output=starts_with_output) if hang else None
        self._noticed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._nodes = ""

    async def __aenter__(self) -> HangWatch:
        if self._hang:
            self._task = asyncio.create_task(self._or_say_why_not())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def state(self, info: JobInfo) -> None:
        """Slurm's word on the job: one that waits or is suspended does not hang."""
        self._nodes = info.nodes or self._nodes
        if self._silence:
            self._silence.runs = info.state == "RUNNING"

    def runs(self) -> None:
        """It runs, by what somebody else than Slurm says."""
        if self._silence:
            self._silence.runs = True

    def look(self, size: int) -> None:
        """As :meth:`Silence.look`; the watcher's ``pulse``."""
        if not self._silence:
            return
        self._silence.stepped = self._silence.stepped or bool(self._job.step())
        self._silence.look(size)
        if self._silence.too_long:
            self._noticed.set()
        elif self.found and not self.found["ended"] and not self._silence.seconds:
            self._job.log.info("%s goes on: it was silent for %s", self._job.name, self.found["for"])
            self.found = None
            self._noticed.clear()

    async def _or_say_why_not(self) -> None:
        try:
            await self._report()
        except Exception:  # the job goes on, and so does the waiting
            self._job.log.exception("%s is not watched for a hang any more", self._job.name)

    async def _report(self) -> None:
        assert self._hang and self._silence
        while True:
            await self._noticed.wait()
            if self.found is None:
                await self._say()
            await asyncio.sleep(1.0)

    async def _say(self) -> None:
        assert self._hang and self._silence
        job = self._job
        silent, step = duration(self._silence.seconds), job.step()
        stacks = await stacks_of(job.cluster, job.job_id)
        if not self._silence.too_long:  # it has said something meanwhile
            self._noticed.clear()
            return
        said = f"{job.name} has been silent for {silent}: no output and no new step. It may hang"
        self.found = {
            "for": silent,
            "limit_minutes": self._hang.minutes,
            "nodes": self._nodes,
            "step": step,
            "stacks": stacks,
            "ended": False,
        }
        job.log.warning("%s", said)
        for line in stacks:
            job.log.warning("[stack] %s", line)
        if self._hang.action == "report":
            await self._tell(said, self.found)
        else:
            await self._put_an_end(self.found)

    async def _tell(self, said: str, found: dict[str, Any]) -> None:
        job = self._job
        facts = [
            ("Class", "hang"),
            ("Last line", (job.last() or ["(it has printed nothing)"])[-1]),
            ("Last step", found["step"]),
            ("Node", found["nodes"]),
            ("Next", "nothing is done: it goes on (on_hang)"),
        ]
        lines = [*job.last()[-LINES_TOLD:], *found["stacks"][:LINES_TOLD]]
        await tell_of_job(
            job.ti, "hang", said, facts, cluster=job.cluster, directory=job.directory, lines=lines
        )

    async def _put_an_end(self, found: dict[str, Any]) -> None:
        """Nothing comes after this: once the job has ended, so has the watching."""
        job = self._job
        found["ended"] = True
        job.log.warning("ending %s, for it hangs", job.name)
        # Else a triggerer that takes over now would find a job that "a person cancelled".
        why = {"kind": "hang", "reason": notice_of(found)}
        await write_down(job.cluster, job.directory, "reason.json", json.dumps(why))
        await self._end()
