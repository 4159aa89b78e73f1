"""One watcher for all jobs of a cluster in this process, so that N waiting tasks cost one query, not N.

Log bytes and ends of jobs are read from files by one remote command a tick, which asks nothing of slurmctld;
``squeue`` is asked seldom, once for all jobs, and only says what files cannot: still waiting, node lost, cancelled.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.slurm.client import JobInfo, SlurmClient
from llm_bridge.slurm.states import Phase
from llm_bridge.transport import CommandFailed, LoginNodeUnreachable, connect

log = logging.getLogger(__name__)

# A tick brings at most so much of each log; a job that writes faster is caught up with over the next ticks.
MAX_LOG_BYTES = 256 * 1024
# slurmctld is asked at most this often for the states of all jobs.
MIN_STATE_SECONDS = 5.0
# A job that neither slurmctld nor accounting knows, and that left no outcome file, is given up after so long.
LOST_SECONDS = 600.0


@dataclass(frozen=True)
class Update:
    """Something new of one job. ``ended`` is its last word."""

    log: str = ""
    files: dict[str, Any] = field(default_factory=dict)
    info: JobInfo | None = None
    notice: str = ""
    ended: bool = False


@dataclass(eq=False)
class _Watched:
    """One job that somebody waits for."""

    job_id: str
    directory: str
    files: tuple[str, ...]
    queue: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)
    offset: int = 0
    # A look may end in the middle of a character.
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    info: JobInfo | None = None
    seen: dict[str, Any] = field(default_factory=dict)
    unknown_since: float | None = None


class Watcher:
    """Looks at all registered jobs of one cluster while there are any."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._jobs: set[_Watched] = set()
        self._task: asyncio.Task[None] | None = None
        self._states_due = 0.0

    async def follow(
        self, job_id: str, directory: str, files: tuple[str, ...] = ()
    ) -> AsyncGenerator[Update]:
        """Updates of one job until it has ended; the last one has ``ended`` set.

        :param directory: the attempt's directory.
        :param files: names of small JSON files in it whose content is wanted as it appears.
        """
        job = _Watched(job_id, directory, (*files, "outcome.json"))
        self._jobs.add(job)
        self._states_due = 0.0
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._loop())
        try:
            while True:
                update = await job.queue.get()
                yield update
                if update.ended:
                    return
        finally:
            self._jobs.discard(job)

    async def _loop(self) -> None:
        failures = 0
        while self._jobs:
            try:
                async with connect(self.cluster) as transport:
                    client = SlurmClient(self.cluster, transport)
                    while self._jobs:
                        await self._tick(client)
                        if failures:
                            self._tell(f"cluster {self.cluster.name} answers again")
                        failures = 0
                        await asyncio.sleep(self.cluster.poll_seconds)
            except (LoginNodeUnreachable, CommandFailed) as error:
                failures += 1
                pause = min(60.0, self.cluster.poll_seconds * 2 ** min(failures, 8))
                self._tell(f"waiting for cluster {self.cluster.name}, next look in {pause:.0f} s: {error}")
                await asyncio.sleep(pause)
            except Exception as error:  # a defect or a wrong connection: every waiting task must hear of it
                log.exception("the watcher of cluster %s gives up", self.cluster.name)
                for job in self._jobs:
                    job.queue.put_nowait(Update(notice=f"{type(error).__name__}: {error}", ended=True))
                return

    async def _tick(self, client: SlurmClient) -> None:
        jobs = {f"{n}": job for n, job in enumerate(self._jobs)}
        request = {
            n: {"directory": job.directory, "offset": job.offset, "files": list(job.files)}
            for n, job in jobs.items()
        }
        news = await client.watch(request, MAX_LOG_BYTES)
        due = time.monotonic() >= self._states_due
        states = await client.states({job.job_id for job in jobs.values()}) if due else {}
        if due:
            self._states_due = time.monotonic() + max(MIN_STATE_SECONDS, self.cluster.poll_seconds)
        for n, job in jobs.items():
            seen = news[n]
            fresh = {name: value for name, value in seen.files.items() if value != job.seen.get(name)}
            job.offset = seen.offset
            job.seen = seen.files
            state = states.get(job.job_id)
            moved = state if state and (job.info is None or state.state != job.info.state) else None
            if state:
                job.info, job.unknown_since = state, None
            elif due and job.unknown_since is None:
                job.unknown_since = time.monotonic()
            if seen.log or fresh or moved:
                job.queue.put_nowait(Update(log=job.decoder.decode(seen.log), files=fresh, info=moved))
            caught_up = seen.offset >= seen.size
            if caught_up and (final := await self._end(client, job)):
                # Slurm adds a line of its own ("CANCELLED ... DUE TO TIME LIMIT") after the job's last one.
                last = (await client.watch({n: {**request[n], "offset": job.offset}}, MAX_LOG_BYTES))[n]
                job.queue.put_nowait(
                    replace(final, log=job.decoder.decode(last.log, final=True), files=last.files)
                )
                self._jobs.discard(job)

    async def _end(self, client: SlurmClient, job: _Watched) -> Update | None:
        """The last update if the job has ended, by its outcome file or by what Slurm says."""
        outcome = job.seen.get("outcome.json")
        said_over = job.info is not None and job.info.phase is Phase.ENDED
        if not (outcome or said_over or job.unknown_since):
            return None
        info = await client.details(job.job_id)
        if info and info.phase is Phase.ENDED:
            return Update(info=info, ended=True)
        if info:
            return None  # COMPLETING, or requeued after its outcome was written
        if outcome:  # Slurm has forgotten the job; its own word is left
            state = "FAILED" if outcome["exit_code"] else "COMPLETED"
            return Update(
                info=JobInfo(job.job_id, state, exit_code=outcome["exit_code"], ended=outcome["ended"]),
                ended=True,
            )
        if job.unknown_since and time.monotonic() - job.unknown_since > LOST_SECONDS:
            return Update(
                notice=f"neither slurmctld nor accounting has known job {job.job_id} for {LOST_SECONDS:.0f} s, "
                "and it left no outcome file",
                ended=True,
            )
        return None

    def _tell(self, text: str) -> None:
        for job in self._jobs:
            job.queue.put_nowait(Update(notice=text))


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
