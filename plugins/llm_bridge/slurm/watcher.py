"""One watcher for all jobs of a cluster in this process, so that N waiting tasks cost one query, not N.

Log bytes and ends of jobs are read from files, by one request to one session on the login node (``include/login/
watch.py``), which asks nothing of slurmctld. ``squeue`` is asked seldom, once for all jobs, and says what files cannot:
still waiting, node lost, cancelled, requeued.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.slurm.client import RationUsedUp, SlurmClient, SlurmUnreachable
from llm_bridge.slurm.flood import Flood
from llm_bridge.slurm.info import JobInfo, by_own_word, from_outcome
from llm_bridge.slurm.states import FORGOTTEN, Phase
from llm_bridge.transport import LoginNodeUnreachable, Session, connect

log = logging.getLogger(__name__)

# Files are looked at this often, so that output is in the task's log within two seconds; more seldom where a look
# takes long (a slow file system, very many jobs).
LOOK_SECONDS = 1.0
LOOKS_SHARE = 5
# A job has just come, or says that it has ended: for a while slurmctld is asked sooner than poll_seconds says.
SOON_SECONDS = 3.0
HURRY_SECONDS = 30.0
# A job that neither slurmctld nor accounting knows, and that left no outcome file, is given up after so long.
LOST_SECONDS = 600.0
# A slurmctld that has forgotten a job ends what is left of it when the nodes report to it again: only then may it have
# a successor.
FORGOTTEN_SECONDS = 60.0
MOST_PAUSE = 60.0
# A follower whose place another one has taken belongs to a triggerer that Airflow had given up; it is ended as soon as
# that triggerer looks. One that is still there after so long is wanted after all: the other one has died.
RECLAIM_SECONDS = 15.0
# squeue's reason for a job that Slurm put back and holds as its nodes would not start it, which is not the job's fault.
HELD = "launch failed requeued held"
MOST_RELEASES = 5
# Polling leaves so much of the site's ration to submissions and cancels.
RESERVE = 5

Resume = Callable[[dict[str, Any] | None], Awaitable[int]]
Pulse = Callable[[int], None]


@dataclass(frozen=True)
class Update:
    """Something new of one job. ``ended`` is its last word.

    :param log: whole lines of the output; the first byte is at ``offset``, after ``skipped`` bytes that were too many.
    """

    log: bytes = b""
    offset: int = 0
    skipped: int = 0
    files: dict[str, Any] = field(default_factory=dict)
    info: JobInfo | None = None
    notice: str = ""
    ended: bool = False
    held: dict[str, Any] | None = None
    claimed: bool = False


@dataclass(eq=False)
class _Watched:
    """One job that somebody waits for."""

    job_id: str
    directory: str
    files: tuple[str, ...]
    note: dict[str, Any] | None
    # What runs inside a Slurm job (a Ray job) ends by its own outcome file, or when somebody knows that it has ended.
    part: asyncio.Event | None = None
    pulse: Pulse | None = None
    queue: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)
    # Where to read on; None while the output is not wanted, or not yet.
    offset: int | None = None
    flood: Flood = field(default_factory=Flood)
    claimed: bool = False
    taken_since: float | None = None
    info: JobInfo | None = None
    seen: dict[str, Any] = field(default_factory=dict)
    unknown_since: float | None = None
    # Another job has its id.
    replaced: bool = False
    releases: int = 0
    hurry_until: float = field(default_factory=lambda: time.monotonic() + HURRY_SECONDS)

    @property
    def settled(self) -> bool:
        """Whether it is known from where on the output is wanted, if it is."""
        return self.note is None or (self.offset is not None and self.taken_since is None)

    @property
    def part_ended(self) -> bool:
        """Whether what runs inside the Slurm job has ended."""
        return self.part is not None and (self.part.is_set() or bool(self.seen.get("outcome.json")))

    def request(self, final: bool = False) -> dict[str, Any]:
        """What to ask watch.py about this job."""
        wanted = self.offset is not None and self.taken_since is None
        return {
            "directory": self.directory,
            "files": [*self.files, "result.json", "reason.json"] if final else list(self.files),
            "log": {"offset": self.offset, "final": final, **self.flood.allowed(final)} if wanted else None,
            "note": self.note,
            "claim": self.note is not None and not self.claimed,
        }

    def take(self, seen: dict[str, Any]) -> Update:
        """Read watch.py's answer; what is new in it."""
        fresh = {name: value for name, value in seen["files"].items() if value != self.seen.get(name)}
        self.seen |= seen["files"]
        if "outcome.json" in fresh:
            self.hurry_until = time.monotonic() + HURRY_SECONDS
        if not seen["taken"]:
            self.taken_since = None
        elif self.taken_since is None:
            self.taken_since = time.monotonic()
        elif time.monotonic() - self.taken_since > RECLAIM_SECONDS:
            self.claimed, self.offset, self.taken_since = False, None, None
        data = base64.b64decode(seen["log"])
        if self.pulse and seen["size"] is not None:
            self.pulse(seen["size"])
        if self.offset is not None and (data or seen["skipped"]):
            self.offset = seen["offset"] + len(data)
            self.flood.took(len(data))
        return Update(log=data, offset=seen["offset"], skipped=seen["skipped"], files=fresh)


class Watcher:
    """Looks at all registered jobs of one cluster while there are any."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._jobs: set[_Watched] = set()
        self._task: asyncio.Task[None] | None = None
        self._asked = -1e9  # when slurmctld was asked last
        self._slurm_failures = 0
        self._slurm_pause = 0.0

    async def follow(
        self,
        job_id: str,
        directory: str,
        files: tuple[str, ...] = (),
        *,
        output: bool = True,
        note: dict[str, Any] | None = None,
        resume: Resume | None = None,
        part: asyncio.Event | None = None,
        pulse: Pulse | None = None,
    ) -> AsyncGenerator[Update]:
        """Updates of one job until it has ended; the last one has ``ended`` set.

        :param directory: the attempt's directory.
        :param files: names of small JSON files in it whose content is wanted as it appears; ``result.json`` and
            ``reason.json`` come with the last update anyway.
        :param output: whether the job's output is wanted.
        :param note: with ``follower``, this follower's name: who follows the output, kept on the cluster. A follower
            whose place another one has taken gets no more output and does not hear of the job's end; if nobody ends
            it, it takes its place again.
        :param resume: called with the note of the follower before this one, if any; the byte to go on from.
        :param part: ``directory`` is of something that runs inside the Slurm job and ends by itself: with its outcome
            file, or when this event is set.
        :param pulse: called with the output's size in bytes after each look at it. Not called while the login node is
            away, or while another follower has this one's place.
        """
        job = _Watched(job_id, directory, (*files, "outcome.json"), note, part, pulse)
        if output and note is None:
            job.offset = 0
        self._jobs.add(job)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._loop())
        try:
            while True:
                update = await job.queue.get()
                if update.claimed:
                    job.offset = await resume(update.held) if resume else 0
                    continue
                yield update
                if update.ended:
                    return
                if job.note and update.log:  # the follower has come back for more: it has done with these
                    job.note = {**job.note, "offset": update.offset + len(update.log)}
        finally:
            self._jobs.discard(job)

    async def _loop(self) -> None:
        failures = 0
        while self._jobs:
            try:
                async with connect(self.cluster) as transport:
                    client = SlurmClient(self.cluster, transport)
                    async with client.watch() as session:
                        while self._jobs:
                            began = time.monotonic()
                            await self._look(client, session)
                            if failures:
                                self._tell(f"the login node of cluster {self.cluster.name} answers again")
                            failures = 0
                            took = time.monotonic() - began
                            await asyncio.sleep(max(LOOK_SECONDS, LOOKS_SHARE * took) if took < 10 else took)
            except LoginNodeUnreachable as error:
                failures += 1
                pause = _pause(failures)
                self._tell(f"waiting for cluster {self.cluster.name}, next look in {pause:.0f} s: {error}")
                await asyncio.sleep(pause)
            except Exception as error:  # a defect or a wrong connection: every waiting task must hear of it
                log.exception("the watcher of cluster %s gives up", self.cluster.name)
                for job in self._jobs:
                    job.queue.put_nowait(Update(notice=f"cannot watch it: {error}", ended=True))
                return

    async def _look(self, client: SlurmClient, session: Session) -> None:
        """One look at all jobs' files, and at what Slurm says where that is due."""
        jobs = {str(n): job for n, job in enumerate(self._jobs)}
        answer = await _ask(session, {n: job.request() for n, job in jobs.items()})
        for n, job in jobs.items():
            seen = answer[n]
            claim = job.note is not None and not job.claimed
            update = job.take(seen)
            if claim:
                job.claimed = True
                job.queue.put_nowait(Update(claimed=True, held=seen["held"]))
            if update.log or update.skipped or update.files:
                job.queue.put_nowait(update)
        ended = {job: Update(ended=True) for job in jobs.values() if job.part_ended and job.settled}
        await self._finish(session, ended)
        watched = [job for job in jobs.values() if job not in ended]
        if watched and self._due(watched):
            states = await self._states(client, sorted({job.job_id for job in watched}))
            if states is not None:
                await self._compare(client, session, watched, states)

    def _due(self, jobs: Any) -> bool:
        """Whether slurmctld is to be asked now."""
        now = time.monotonic()
        soon = any(
            now < job.hurry_until and (job.info is None or job.seen.get("outcome.json") or job.unknown_since)
            for job in jobs
        )
        gap = min(self.cluster.poll_seconds, SOON_SECONDS) if soon else self.cluster.poll_seconds
        return now - self._asked >= max(gap, self._slurm_pause)

    async def _states(self, client: SlurmClient, job_ids: list[str]) -> dict[str, JobInfo] | None:
        """What Slurm says of these jobs; None when it cannot be asked, which says nothing about any job."""
        try:
            states = await client.find(job_ids, reserve=RESERVE)
        except RationUsedUp as error:
            self._slurm_pause = error.seconds
            return None
        except SlurmUnreachable as error:
            self._slurm_failures += 1
            self._slurm_pause = _pause(self._slurm_failures)
            self._tell(
                f"Slurm is away, asked again in {self._slurm_pause:.0f} s; jobs are not affected: {error}"
            )
            return None
        finally:
            self._asked = time.monotonic()
        if self._slurm_failures:
            self._tell(f"Slurm on cluster {self.cluster.name} answers again")
        self._slurm_failures, self._slurm_pause = 0, 0.0
        return states

    async def _release(self, client: SlurmClient, job: _Watched) -> None:
        """Slurm holds the job since it could not start it: say so and let it go on, a few times."""
        if job.releases == MOST_RELEASES:
            return
        try:
            done = await client.release(job.job_id)
        except RationUsedUp:
            return
        job.releases += 1
        job.queue.put_nowait(
            Update(
                notice=f"Slurm could not start job {job.job_id} and holds it; `scontrol release` "
                + ("lets it go on" if done else "is refused: ask the site's administrators")
            )
        )

    async def _compare(
        self, client: SlurmClient, session: Session, jobs: list[_Watched], states: dict[str, JobInfo]
    ) -> None:
        """Tell what Slurm's answer changes; end those that have ended."""
        over: dict[_Watched, Update] = {}
        for job in jobs:
            info = states.get(job.job_id)
            # What runs inside a Slurm job has a directory of its own.
            if info and job.part is None and not info.is_of(job.directory):
                job.replaced, info = True, None
            if info and HELD in info.reason:
                await self._release(client, job)
            if info and (job.info is None or info.state != job.info.state):
                job.queue.put_nowait(Update(info=info))
            if info:
                job.info, job.unknown_since = info, None
            elif job.unknown_since is None:
                job.unknown_since = time.monotonic()
                job.hurry_until = job.unknown_since + HURRY_SECONDS
            if job.settled and (end := self._end(job, info)):
                over[job] = end
        await self._finish(session, over)

    async def _finish(self, session: Session, over: dict[_Watched, Update]) -> None:
        """The last word on each of these jobs, after what is still to be read of it."""
        # What a job wrote last, and a line of Slurm's own ("CANCELLED ... DUE TO TIME LIMIT"), comes before its end.
        waiting = {str(n): job for n, job in enumerate(over)}
        while waiting:
            answer = await _ask(session, {n: job.request(final=True) for n, job in waiting.items()})
            for n, job in list(waiting.items()):
                job.queue.put_nowait(job.take(answer[n]))
                if not answer[n]["more"]:
                    del waiting[n]
        for job, end in over.items():
            self._jobs.discard(job)
            job.queue.put_nowait(end)

    @staticmethod
    def _end(job: _Watched, info: JobInfo | None) -> Update | None:
        """The last update if the job has ended: by what Slurm says or, once that has forgotten it, by its own word."""
        outcome = job.seen.get("outcome.json")
        if info:
            if info.phase is not Phase.ENDED:
                return None
            told = by_own_word(info, outcome)
            notice = f"Slurm says {info.state}, but the job had done its work before" if told != info else ""
            return Update(info=told, notice=notice, ended=True)
        if outcome:
            return Update(info=from_outcome(job.job_id, outcome), ended=True)
        silent = time.monotonic() - job.unknown_since if job.unknown_since else 0.0
        if job.replaced and silent > FORGOTTEN_SECONDS:
            return Update(
                notice=f"{FORGOTTEN} job {job.job_id}, most likely as slurmctld crashed: another job has its id",
                ended=True,
            )
        if silent > LOST_SECONDS:
            return Update(
                notice=f"{FORGOTTEN} job {job.job_id}: neither slurmctld nor accounting has known it for "
                f"{LOST_SECONDS:.0f} s, and it left no outcome file",
                ended=True,
            )
        return None

    def _tell(self, text: str) -> None:
        for job in self._jobs:
            job.queue.put_nowait(Update(notice=text))


async def _ask(session: Session, jobs: dict[str, Any]) -> dict[str, Any]:
    return json.loads(await session.ask(json.dumps({"jobs": jobs}).encode()))["jobs"]


def _pause(failures: int) -> float:
    """Seconds until the next try: longer each time, and not the same for all who wait."""
    return min(MOST_PAUSE, 2.0 ** min(failures, 6)) * random.uniform(0.7, 1.3)


_watchers: dict[tuple[int, str], tuple[asyncio.AbstractEventLoop, Watcher]] = {}


def watcher_for(cluster: Cluster) -> Watcher:
    """The watcher of ``cluster`` for the running event loop.

    The triggerer has one loop for all triggers; ``dag.test`` makes one for each.
    """
    loop = asyncio.get_running_loop()
    key = (id(loop), cluster.name)
    held = _watchers.get(key)
    # The id of a dead loop can come back, so the loop itself is compared too.
    if held is None or held[0] is not loop or held[1].cluster != cluster:
        held = _watchers[key] = (loop, Watcher(cluster))
    return held[1]
