"""Poll all jobs of a cluster that this process waits for: N waiting tasks cost one query, not N.

Output and outcomes of jobs are read from files, with one request to one session on the login node
(``remote/login/poll_jobs.py``), which never calls slurmctld. A job whose outcome file has exit code 0 has ended: Slurm
is not asked about it. ``squeue`` runs less often, once for all jobs, and reports the states that no file contains:
pending, node lost, cancelled, requeued, and why a job failed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import LoginNodeUnreachable, RateLimitExceeded, SlurmUnavailable
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome, Started
from llm_bridge.remote.messages import (
    JobNews,
    JobQuery,
    LogQuery,
    Measures,
    PollAnswer,
    PollRequest,
    decode,
    encode,
)
from llm_bridge.remote.transport import Session
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.events import EndReason
from llm_bridge.slurm.rate_limit import OutputRateLimiter
from llm_bridge.slurm.status import UNLISTED, JobInfo, Phase, from_outcome, is_job_id, succeeded

log = logging.getLogger(__name__)

# Interval of reading files: output is in the task's log within two seconds. If a poll takes long (a slow file system,
# very many jobs), the pause after it is POLL_DUTY_FACTOR times its duration.
POLL_INTERVAL_SECONDS = 1.0
POLL_DUTY_FACTOR = 5
# Interval of reading measures (metrics.jsonl, the use of GPUs), unless more can be read at once.
MEASURES_INTERVAL_SECONDS = 5.0
# Interval of squeue after a failure or a submission, in place of poll_seconds, and how long it applies. squeue costs
# slurmctld two requests: with many jobs some are always new, so the interval for these grows with the number of jobs.
FAST_POLL_INTERVAL_SECONDS = 3.0
FAST_POLL_SECONDS_PER_JOB = 0.1
FAST_POLL_WINDOW_SECONDS = 30.0
# Timeout after which a job is lost that neither slurmctld nor accounting knows, and that left no outcome file. It
# starts again whenever the job's output grows.
LOST_TIMEOUT_SECONDS = 600.0
# The same for a job that slurmctld does not know, but that has not ended for accounting. Neither of the two is reliable
# alone: accounting never records the end of a job that slurmctld lost in a crash, so its record cannot count for ever;
# but a squeue that does not list every job must not lead to a second job beside a running one.
UNLISTED_TIMEOUT_SECONDS = 1800.0
# A slurmctld that has lost a job kills its processes when their nodes register again. Only after that may another job
# replace it.
REQUEUE_GRACE_SECONDS = 60.0
MAX_PAUSE_SECONDS = 60.0
# A follower that lost its lease belongs to a triggerer that Airflow considered dead; that triggerer cancels it at its
# next heartbeat. If it still runs after this time, it is needed again: the other follower's triggerer has died.
RECLAIM_SECONDS = 15.0
# An answer that is read later than this is asked for again: this process was probably stopped, and in the meantime
# another triggerer may have acquired the leases and logged the same lines. Below the timeout after which Airflow moves
# triggers (`[triggerer] triggerer_health_check_threshold`).
STALE_ANSWER_SECONDS = 10.0
# A job that succeeded has written its files before its end, but a network file system may show them later (NFS caches
# directories for up to 60 s): so its outcome file is waited for, and its result with it.
LATE_FILES_SECONDS = 90.0
# squeue's reason for a job that Slurm requeued and holds because its nodes did not launch it: not the job's fault.
HELD = "launch failed requeued held"
MAX_RELEASES = 5
# Number of calls of the site's rate limit that polling leaves to submissions and cancels.
RESERVE = 5

# Files that are read once the job has ended, in addition to those that are followed.
LAST_FILES = (attempt_dir.STARTED, attempt_dir.RESULT, attempt_dir.REASON)

Resume = Callable[[dict[str, Any] | None], Awaitable[int]]
OnPoll = Callable[[int], None]


@dataclass(frozen=True)
class JobUpdate:
    """Update on one job; the last one has ``end`` set.

    Attributes:
        log: Whole lines of the output.
        offset: Byte of the output at which ``log`` starts.
        skipped: Number of bytes before ``log`` that were left out because of the rate limit for output.
        files: Content of the JSON files that are new or have changed.
        info: The job's new state in Slurm.
        notice: One line for the task's log.
        end: Reason why following has ended.
        current_lease: With ``lease_acquired``, the lease of the previous follower.
        lease_acquired: This follower has acquired the lease on the output.
        measures: File -> its new lines, of the files with measures that have grown.
    """

    log: bytes = b""
    offset: int = 0
    skipped: int = 0
    files: dict[str, Any] = field(default_factory=dict)
    info: JobInfo | None = None
    notice: str = ""
    end: EndReason | None = None
    current_lease: dict[str, Any] | None = None
    lease_acquired: bool = False
    measures: dict[str, Measures] = field(default_factory=dict)


@dataclass(eq=False)
class JobPoll:
    """State of polling one job for a caller of :meth:`ClusterPoller.follow`."""

    job_id: str
    directory: str
    files: tuple[str, ...]
    lease: dict[str, Any] | None
    # For a Ray job in a Slurm job: it ends with its own outcome file, or when this event is set.
    inner_end: asyncio.Event | None = None
    on_poll: OnPoll | None = None
    queue: asyncio.Queue[JobUpdate] = field(default_factory=asyncio.Queue)
    # Next byte of the output to read; None if no output is requested, or until the lease is acquired.
    offset: int | None = None
    limiter: OutputRateLimiter = field(default_factory=OutputRateLimiter)
    lease_acquired: bool = False
    lease_lost_since: float | None = None
    info: JobInfo | None = None
    # Epoch seconds of the submission, if Slurm has reported the job.
    submitted: float | None = None
    # Seconds in the queue, if Slurm has reported that the job runs.
    queued: float | None = None
    seen: dict[str, Any] = field(default_factory=dict)
    unknown_since: float | None = None
    # The state in accounting of a job that slurmctld does not list, if that state is not final.
    accounted: str = ""
    # Slurm has given its id to another job.
    id_reused: bool = False
    # When Slurm first reported that the job succeeded, while its outcome file was not visible.
    late_since: float | None = None
    releases: int = 0
    # File with measures -> offset of the next byte to read; None if they are not requested.
    measures: dict[str, int] | None = None
    measures_due: float = 0.0
    fast_poll_until: float = field(default_factory=lambda: time.monotonic() + FAST_POLL_WINDOW_SECONDS)

    @property
    def settled(self) -> bool:
        """True if no lease is needed, or the lease is held and the offset to resume from is known."""
        return self.lease is None or (self.offset is not None and self.lease_lost_since is None)

    @property
    def inner_ended(self) -> bool:
        """True if the Ray job in the Slurm job has ended."""
        return self.inner_end is not None and (
            self.inner_end.is_set() or bool(self.seen.get(attempt_dir.OUTCOME))
        )

    @property
    def outcome(self) -> Outcome | None:
        """The job's outcome file, if it has one."""
        outcome: Outcome | None = attempt_dir.parse(Outcome, self.seen.get(attempt_dir.OUTCOME))
        return outcome

    @property
    def succeeded(self) -> bool:
        """True if the job has written exit code 0: Slurm may run it again, but it does no more work then."""
        return self.inner_end is None and self.outcome is not None and self.outcome.exit_code == 0

    def success(self, end: JobUpdate) -> JobUpdate:
        """Return the last update of a job that has succeeded, after the last query.

        Args:
            end: The end as Slurm reports it; without ``info`` if Slurm was not asked.
        """
        assert self.outcome
        started = attempt_dir.parse(Started, self.seen.get(attempt_dir.STARTED))
        notice = ""
        if end.info and not end.info.meaning.good:
            notice = f"Slurm reports {end.info.state}, but the job had completed its work before"
        # A follower that begins after the start, in another triggerer, has never seen the job wait.
        submitted = started.started - self.queued if started and self.queued else self.submitted
        info = succeeded(self.job_id, self.outcome, started, submitted)
        return JobUpdate(info=info, notice=notice, end=EndReason.ENDED)

    def is_late(self) -> bool:
        """Return true while the files of a job that succeeded are waited for."""
        if self.inner_end is not None or self.seen.get(attempt_dir.OUTCOME):
            return False
        if self.late_since is None:
            self.late_since = time.monotonic()
        return time.monotonic() - self.late_since < LATE_FILES_SECONDS

    def query(self, key: str, final: bool = False) -> JobQuery:
        """Return the query for ``poll_jobs.py``.

        Args:
            key: Key of the answer.
            final: The job has ended: read the rest of its output, and its result and reason.
        """
        log_query = None
        if self.offset is not None and self.lease_lost_since is None:
            log_query = LogQuery(self.offset, *self.limiter.limits(final), final)
        return JobQuery(
            key,
            self.directory,
            [*self.files, *LAST_FILES] if final else list(self.files),
            log_query,
            self.lease,
            acquire=self.lease is not None and not self.lease_acquired,
            over=final and self.inner_end is None,
            measures=self.measures if final or time.monotonic() >= self.measures_due else None,
        )

    def acquired(self, previous: dict[str, Any] | None) -> None:
        """Record that the lease is acquired; it keeps the offset of the previous follower until :meth:`resume_at`.

        Args:
            previous: The lease of the previous follower, if any.
        """
        self.lease_acquired = True
        if self.lease and previous and not self.lease.get("truncated"):
            self.lease = {**self.lease, "offset": previous["offset"]}

    def resume_at(self, offset: int) -> None:
        """Request output from an offset on, which the lease names from now on."""
        self.offset = offset
        if self.lease:
            self.lease = {**self.lease, "offset": offset}

    def take(self, news: JobNews) -> JobUpdate:
        """Record the answer of ``poll_jobs.py``; return the update for the caller."""
        changed = {name: value for name, value in news.files.items() if value != self.seen.get(name)}
        self.seen |= news.files
        if attempt_dir.OUTCOME in changed:
            self.fast_poll_until = time.monotonic() + FAST_POLL_WINDOW_SECONDS
        if not news.lease_lost:
            self.lease_lost_since = None
        elif self.lease_lost_since is None:
            self.lease_lost_since = time.monotonic()
        elif time.monotonic() - self.lease_lost_since > RECLAIM_SECONDS:
            self.lease_acquired, self.offset, self.lease_lost_since = False, None, None
        data = base64.b64decode(news.log)
        if data and self.unknown_since:
            self.unknown_since = time.monotonic()  # the job runs, because its output grows
        if self.on_poll and news.size is not None:
            self.on_poll(news.size)
        if self.offset is not None and (data or news.skipped):
            self.offset = news.offset + len(data)
            self.limiter.consume(len(data))
        return JobUpdate(
            log=data,
            offset=news.offset,
            skipped=news.skipped,
            files=changed,
            measures=self._take_measures(news),
        )

    def _take_measures(self, news: JobNews) -> dict[str, Measures]:
        if self.measures is None:
            return {}
        if time.monotonic() >= self.measures_due and not news.more_measures:
            self.measures_due = time.monotonic() + MEASURES_INTERVAL_SECONDS
        found = {name: Measures(*values) for name, values in news.measures.items()}
        self.measures = {**self.measures, **{name: part.end for name, part in found.items()}}
        return found


class ClusterPoller:
    """Poller of all followed jobs of one cluster; it runs while there are any.

    Args:
        cluster: The cluster.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._jobs: set[JobPoll] = set()
        self._task: asyncio.Task[None] | None = None
        self._asked = -1e9  # time.monotonic() of the last squeue
        self._slurm_failures = 0
        self._slurm_pause = 0.0

    async def follow(
        self,
        job_id: str,
        directory: str,
        files: tuple[str, ...] = (),
        *,
        output: bool = True,
        lease: dict[str, Any] | None = None,
        resume: Resume | None = None,
        inner_end: asyncio.Event | None = None,
        on_poll: OnPoll | None = None,
        measures: dict[str, int] | None = None,
    ) -> AsyncGenerator[JobUpdate]:
        """Yield updates of one job until it has ended; the last one has ``end`` set.

        Args:
            job_id: The Slurm job's id.
            directory: The attempt's directory.
            files: Names of small JSON files in it whose content to yield when they appear or change; ``result.json``
                and ``reason.json`` are always part of the updates at the job's end.
            output: Also yield the job's output.
            lease: Lease on the output, kept on the cluster; its ``follower`` identifies this follower. A follower that
                loses the lease gets no more output and not the job's end; if it is not cancelled, it acquires the lease
                again after RECLAIM_SECONDS.
            resume: Called with the lease of the previous follower, if any; returns the byte to resume from.
            inner_end: ``directory`` belongs to a Ray job in the Slurm job, which ends with its own outcome file, or
                when this event is set.
            on_poll: Called with the output's size in bytes after each poll. Not called while the login node is
                unreachable, or while another follower holds the lease.
            measures: Also yield new lines of the files with measures, from these offsets on; None yields none.
        """
        job = JobPoll(job_id, directory, (*files, attempt_dir.OUTCOME), lease, inner_end, on_poll)
        job.measures = measures
        if output and lease is None:
            job.offset = 0
        self._jobs.add(job)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._loop())
        try:
            while True:
                update = await job.queue.get()
                if update.lease_acquired:
                    job.resume_at(await resume(update.current_lease) if resume else 0)
                    continue
                yield update
                if update.end:
                    return
                if job.lease and update.log:  # the caller has processed this update
                    job.lease = {**job.lease, "offset": update.offset + len(update.log)}
        finally:
            self._jobs.discard(job)

    async def _loop(self) -> None:
        failures = 0
        while self._jobs:
            try:
                async with open_client(self.cluster) as client, client.poll_session() as session:
                    while self._jobs:
                        started = time.monotonic()
                        await self._poll(client, session)
                        if failures:
                            self._notice(f"login node of cluster {self.cluster.name} answers again")
                        failures = 0
                        took = time.monotonic() - started
                        await asyncio.sleep(
                            max(POLL_INTERVAL_SECONDS, POLL_DUTY_FACTOR * took) if took < 10 else took
                        )
            except LoginNodeUnreachable as error:
                failures += 1
                pause = _pause(failures)
                self._notice(f"cluster {self.cluster.name} unreachable; retrying in {pause:.0f} s: {error}")
                await asyncio.sleep(pause)
            except (
                Exception
            ) as error:  # a defect or a misconfigured connection: every waiting task must fail with it
                log.exception("polling of cluster %s failed and is not retried", self.cluster.name)
                for job in self._jobs:
                    job.queue.put_nowait(
                        JobUpdate(notice=f"the job cannot be polled: {error}", end=EndReason.UNWATCHED)
                    )
                return

    async def _poll(self, client: SlurmClient, session: Session) -> None:
        """Read the files of all jobs once, and run squeue if it is due."""
        jobs = {str(n): job for n, job in enumerate(self._jobs)}
        for news in await _ask(session, [job.query(key) for key, job in jobs.items()]):
            job = jobs[news.id]
            acquiring = job.lease is not None and not job.lease_acquired
            update = job.take(news)
            if acquiring:
                job.acquired(news.current_lease)
                job.queue.put_nowait(JobUpdate(lease_acquired=True, current_lease=news.current_lease))
            if update.log or update.skipped or update.files or update.measures:
                job.queue.put_nowait(update)
        ended = {job for job in jobs.values() if job.settled and (job.inner_ended or job.succeeded)}
        await self._finish(session, dict.fromkeys(ended, JobUpdate(end=EndReason.ENDED)))
        running = [job for job in jobs.values() if job not in ended]
        if running and self._squeue_due(running):
            states = await self._states(client, sorted({job.job_id for job in running}))
            if states is not None:
                await self._compare(client, session, running, states)

    def _squeue_due(self, jobs: list[JobPoll]) -> bool:
        """Return true if squeue is due."""
        now = time.monotonic()
        gap = self.cluster.poll_seconds
        recent = [job for job in jobs if now < job.fast_poll_until]
        if any(job.seen.get(attempt_dir.OUTCOME) or job.unknown_since for job in recent):
            gap = min(gap, FAST_POLL_INTERVAL_SECONDS)
        elif any(job.info is None for job in recent):
            gap = min(gap, max(FAST_POLL_INTERVAL_SECONDS, FAST_POLL_SECONDS_PER_JOB * len(jobs)))
        return now - self._asked >= max(gap, self._slurm_pause)

    async def _states(self, client: SlurmClient, job_ids: list[str]) -> dict[str, JobInfo] | None:
        """Return the states of jobs in Slurm; None while Slurm is unavailable, which has no meaning for any job."""
        try:
            states = await client.find(job_ids, unlisted=True, reserve=RESERVE)
        except RateLimitExceeded as error:
            self._slurm_pause = error.seconds
            return None
        except SlurmUnavailable as error:
            self._slurm_failures += 1
            self._slurm_pause = _pause(self._slurm_failures)
            self._notice(
                f"Slurm on cluster {self.cluster.name} unavailable; retrying in {self._slurm_pause:.0f} s, jobs are "
                f"not affected: {error}"
            )
            return None
        finally:
            self._asked = time.monotonic()
        if self._slurm_failures:
            self._notice(f"Slurm on cluster {self.cluster.name} answers again")
        self._slurm_failures, self._slurm_pause = 0, 0.0
        return states

    async def _release(self, client: SlurmClient, job: JobPoll) -> None:
        """Release a job that Slurm holds after a failed launch, at most MAX_RELEASES times, with a notice each time."""
        if job.releases == MAX_RELEASES:
            return
        try:
            done = await client.release(job.job_id)
        except RateLimitExceeded:
            return
        job.releases += 1
        job.queue.put_nowait(
            JobUpdate(
                notice=f"Slurm could not launch job {job.job_id} and holds it; "
                + ("released it" if done else "`scontrol release` failed: ask the site's administrators")
            )
        )

    async def _compare(
        self, client: SlurmClient, session: Session, jobs: list[JobPoll], states: dict[str, JobInfo]
    ) -> None:
        """Report changed states, and finish the jobs that have ended."""
        over: dict[JobPoll, JobUpdate] = {}
        for job in jobs:
            info = states.get(job.job_id)
            # A Ray job in a Slurm job has its own directory.
            if info and job.inner_end is None and not info.belongs_to(job.directory):
                job.id_reused, info = True, None
            if info and info.state == UNLISTED:
                if not job.accounted:
                    job.queue.put_nowait(JobUpdate(notice=_unlisted(info)))
                job.accounted, info = info.reason, None
            if info and HELD in info.reason:
                await self._release(client, job)
            if info and (job.info is None or _changed(job.info, info)):
                job.queue.put_nowait(JobUpdate(info=info))
            if info:
                job.info, job.unknown_since, job.accounted = info, None, ""
                job.submitted = job.submitted or time.time() - info.waited
                job.queued = info.waited if info.phase is Phase.RUNNING else None
            elif job.unknown_since is None:
                job.unknown_since = time.monotonic()
                job.fast_poll_until = job.unknown_since + FAST_POLL_WINDOW_SECONDS
            if job.settled and (end := self._end(job, info)):
                over[job] = end
        await self._finish(session, over)

    async def _finish(self, session: Session, over: dict[JobPoll, JobUpdate]) -> None:
        """Queue the last update of each of these jobs, after the rest of its output."""
        # The job's last lines, and one by Slurm ("CANCELLED ... DUE TO TIME LIMIT"), come before the end.
        waiting = {str(n): job for n, job in enumerate(over)}
        while waiting:
            queries = [job.query(key, final=True) for key, job in waiting.items()]
            for news in await _ask(session, queries):
                job = waiting[news.id]
                job.queue.put_nowait(job.take(news))
                if not news.more and not news.more_measures:
                    del waiting[news.id]
        for job, end in over.items():
            self._jobs.discard(job)
            job.queue.put_nowait(job.success(end) if job.succeeded else end)

    @staticmethod
    def _end(job: JobPoll, info: JobInfo | None) -> JobUpdate | None:
        """Return the last update if the job has ended: by Slurm's state or, once forgotten, by its outcome file."""
        if info:
            if info.phase is not Phase.ENDED or (info.meaning.good and job.is_late()):
                return None
            notice = ""
            if info.meaning.good and job.late_since and not job.outcome:
                notice = (
                    f"the job's outcome file is not visible on the login node {LATE_FILES_SECONDS:.0f} s after the "
                    "job's end; its result may be missing, too"
                )
            return JobUpdate(info=info, notice=notice, end=EndReason.ENDED)
        if job.outcome:
            return JobUpdate(info=from_outcome(job.job_id, job.outcome), end=EndReason.ENDED)
        silent = time.monotonic() - job.unknown_since if job.unknown_since else 0.0
        if job.id_reused and silent > REQUEUE_GRACE_SECONDS:
            return JobUpdate(
                notice=f"Slurm has lost job {job.job_id}, probably in a crash of slurmctld: another job has its id",
                end=EndReason.FORGOTTEN,
            )
        limit = UNLISTED_TIMEOUT_SECONDS if job.accounted else LOST_TIMEOUT_SECONDS
        if silent > limit:
            reason = "neither slurmctld nor accounting has listed it"
            if not is_job_id(job.job_id):
                reason = "this is no Slurm job id, Slurm has not listed it"
            elif job.accounted:
                reason = f"slurmctld has not listed it, although accounting has it as {job.accounted},"
            return JobUpdate(
                notice=f"Slurm has lost job {job.job_id}: {reason} for {limit:.0f} s, and it left no outcome file",
                end=EndReason.FORGOTTEN,
            )
        return None

    def _notice(self, text: str) -> None:
        for job in self._jobs:
            job.queue.put_nowait(JobUpdate(notice=text))


async def _ask(session: Session, queries: list[JobQuery]) -> Sequence[JobNews]:
    started = time.monotonic()
    answer = await session.ask(json.dumps(encode(PollRequest(queries))).encode())
    # Once only: on a slow file system every answer takes that long.
    if time.monotonic() - started > STALE_ANSWER_SECONDS:
        # The leases were acquired by the first request; another follower that has acquired them since keeps them.
        queries = [query._replace(acquire=False) for query in queries]
        answer = await session.ask(json.dumps(encode(PollRequest(queries))).encode())
    decoded: PollAnswer = decode(PollAnswer, json.loads(answer))
    return decoded.jobs


def _unlisted(info: JobInfo) -> str:
    return (
        f"slurmctld does not list job {info.job_id}, but accounting has it as {info.reason}: it counts as lost after "
        f"{UNLISTED_TIMEOUT_SECONDS / 60:.0f} minutes in this state without new output"
    )


def _changed(old: JobInfo, new: JobInfo) -> bool:
    """Return whether a follower should get a job's new state: of a pending job also another reason or start."""
    if new.state != old.state:
        return True
    pending = new.phase is Phase.WAITING
    return pending and (new.reason, new.expected_wait) != (old.reason, old.expected_wait)


def _pause(failures: int) -> float:
    """Return the seconds until the next try: exponential backoff with jitter."""
    return min(MAX_PAUSE_SECONDS, 2.0 ** min(failures, 6)) * random.uniform(0.7, 1.3)


_pollers: dict[tuple[int, str], tuple[asyncio.AbstractEventLoop, ClusterPoller]] = {}


def poller_for(cluster: Cluster) -> ClusterPoller:
    """Return the poller of ``cluster`` for the running event loop.

    The triggerer has one event loop for all triggers; ``dag.test`` creates one for each.
    """
    loop = asyncio.get_running_loop()
    key = (id(loop), cluster.name)
    known = _pollers.get(key)
    # Python may reuse the id of a closed loop, so the loop itself is compared as well.
    if known is None or known[0] is not loop or known[1].cluster != cluster:
        known = _pollers[key] = (loop, ClusterPoller(cluster))
    return known[1]
