"""Submit a task's Slurm job exactly once: find it, resume it, or submit the next attempt. Independent of Airflow."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from llm_bridge.exceptions import (
    ClusterUnavailable,
    ConfigError,
    EarlierAttemptRuns,
    NotAcceptedYet,
    SubmissionUnread,
)
from llm_bridge.remote import attempt_dir, messages
from llm_bridge.remote.messages import FoundResult
from llm_bridge.slurm import attempts
from llm_bridge.slurm.attempts import Attempt
from llm_bridge.slurm.cancellation import CANCEL_SECONDS, cancel_and_wait, close_attempts
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.spec import ResolvedJob, SlurmJob
from llm_bridge.slurm.status import JobInfo, Phase
from llm_bridge.task_state import TaskState

log = logging.getLogger(__name__)

# Maximum wait for the end of the old job after its task was cleared.
CANCEL_CLEARED_SECONDS = 120.0
FOLLOWUP_SUFFIX = ".then"


class JobNotGone(Exception):
    """The task was cleared, but its old job has not ended: nothing was submitted."""


@dataclass(frozen=True)
class Submitted:
    """Outcome of a submission.

    Attributes:
        attempt: The current attempt, with its job's id unless ``reused`` is set.
        info: State of a job that had been submitted before; None for a new one.
        reused: The stage's existing result, in place of a job.
        followup: ``{"job_id", "directory"}`` of the follow-up job, if any.
    """

    attempt: Attempt
    info: JobInfo | None = None
    reused: FoundResult | None = None
    followup: dict[str, str] | None = None

    @property
    def has_ended(self) -> bool:
        """True if the job was found and has ended."""
        return self.info is not None and self.info.phase is Phase.ENDED


# Returns a job of another task to adopt in place of a new attempt, as (attempt, state), or None. Called with the client
# and the task's last attempt.
Adopt = Callable[[SlurmClient, Attempt | None], Awaitable[tuple[Attempt, JobInfo] | None]]


class SlurmSubmission:
    """Submission of one task's job.

    Args:
        job: The job.
        task: Its task, with the state store that outlives the task's tries.
        secrets: File name -> text, for the attempt's ``secrets/``.
        service: The job is useful only while it runs (a Ray cluster).
        followup: Follow-up job to queue with a dependency on this one.
        followup_secrets: Secrets of the follow-up job.
        adopt: Finds a job of another task to adopt.
        replaces: Attempt directory of another task's job that has ended, and which this job replaces.
    """

    def __init__(
        self,
        job: SlurmJob,
        task: TaskState,
        secrets: Mapping[str, str],
        *,
        service: bool = False,
        followup: SlurmJob | None = None,
        followup_secrets: Mapping[str, str] | None = None,
        adopt: Adopt | None = None,
        replaces: str | None = None,
    ) -> None:
        self.job = job
        self.task = task
        self.secrets = dict(secrets)
        self.service = service
        self.followup = followup
        self.followup_secrets = dict(followup_secrets or {})
        self.adopt = adopt
        self.replaces = [replaces] if replaces else []

    async def submit(self) -> Submitted:
        """Find this task's job or submit it.

        Raises:
            ConfigError: Slurm refuses the job.
            JobNotGone: The task was cleared, and its old job does not begin to end.
            SubmissionUnread: sbatch succeeded, but the job's id could not be determined.
            NotAcceptedYet: Slurm does not accept the job now, or an earlier attempt's processes or epilog still run.
            ClusterUnavailable: The login node or slurmctld does not answer; a later call finds a job that was
                submitted nevertheless.
        """
        async with open_client(self.job.cluster) as client:
            resolved = self.job.resolve(client.cluster)
            last = attempts.load(self.task)
            attempt, info = await self._choose_attempt(client, last)
            try:
                found = Submitted(attempt, info) if info else await self._submit(client, resolved, attempt)
            except EarlierAttemptRuns:
                # The earlier attempt may complete its work: the next call looks it up again.
                if last:
                    last.save(self.task)
                raise
            if self.followup and not found.reused and not found.has_ended:
                followup = await self._submit_followup(client, self.followup, found.attempt)
                found = replace(found, followup=followup)
            return found

    async def cancel(self, seconds: float = CANCEL_SECONDS) -> dict[str, JobInfo]:
        """Close all attempts of this task and cancel their jobs.

        Args:
            seconds: Maximum seconds to wait for the jobs to end.

        Returns:
            The jobs that have not ended by then, by id.
        """
        # An attempt whose job id was never stored may also have a job, or be about to get one.
        ids = await close_attempts(self.job.cluster, self.job.directory)
        last = attempts.load(self.task)
        if last and last.job_id and not last.over and last.job_id not in ids:
            ids.append(last.job_id)  # adopted from another task
        return await cancel_and_wait(self.job.cluster, ids, seconds) if ids else {}

    async def close_followup(self) -> None:
        """Close the follow-up job of a failed job: Slurm cancels it, but does not remove its secrets."""
        if not self.followup:
            return
        try:
            await close_attempts(self.followup.cluster, self.followup.directory)
        except ClusterUnavailable as error:
            log.warning(
                "follow-up job in %s not closed; the next attempt or the teardown closes it: %s",
                self.followup.directory,
                error,
            )

    async def _choose_attempt(
        self, client: SlurmClient, last: Attempt | None
    ) -> tuple[Attempt, JobInfo | None]:
        if last is None:
            return await self._next_attempt(client, None)
        if last.was_cleared(self.task):
            left = await self.cancel(CANCEL_CLEARED_SECONDS)
            if left and all(info.is_completing for info in left.values()):
                raise EarlierAttemptRuns(
                    f"the task was cleared, and Slurm job {', '.join(left)} is still COMPLETING after scancel: its "
                    "processes are being ended, or the site's epilog runs. The next job is submitted after its end"
                )
            if left:
                raise JobNotGone(
                    f"the task was cleared, but Slurm job {', '.join(left)} has not ended after scancel; the next try "
                    "checks again. Check `scontrol show job` on the cluster"
                )
            log.info("the task was cleared: starting a new attempt after attempt %d", last.number)
            return await self._next_attempt(client, last)
        # A job that was given up may have completed its work since, on a node that did not answer slurmctld.
        info = await client.look_up(last.job_id, last.directory) if last.job_id else None
        if attempts.should_resume(last, info, service=self.service):
            if info:
                log.info(
                    "found Slurm job %s of attempt %d: it %s", info.job_id, last.number, info.meaning.meaning
                )
            return last, info
        if last.number:  # number 0 only stores the nodes that failed under another task's job
            ended = info.meaning.meaning if info else "ended without success"
            log.info("attempt %d (Slurm job %s) %s; starting the next one", last.number, last.job_id, ended)
        return await self._next_attempt(client, last)

    async def _next_attempt(
        self, client: SlurmClient, last: Attempt | None
    ) -> tuple[Attempt, JobInfo | None]:
        if self.adopt and (adopted := await self.adopt(client, last)):
            return adopted
        return attempts.next_attempt(self.task, self.job.directory, last), None

    async def _submit(self, client: SlurmClient, resolved: ResolvedJob, attempt: Attempt) -> Submitted:
        resolved = await self._without_bad_nodes(client, resolved, attempt)
        for note in resolved.notes:
            log.warning("%s", note)
        while True:
            attempt.save(self.task)  # before the submission: the try may be killed during it
            answer = await client.submit(
                resolved,
                attempt.directory,
                attempt.key,
                self.task.owner,
                self.secrets,
                is_first=attempt.is_first,
                replaces=self.replaces,
            )
            if answer.status == messages.REUSED:
                return Submitted(attempt, reused=answer.result)
            if answer.status != messages.CLOSED:
                break
            # A teardown or a later try has closed the attempt.
            attempt = attempts.next_attempt(self.task, self.job.directory, attempt)
        attempt = replace(attempt, job_id=answer.job_id)
        attempt.save(self.task)
        log_archived(answer.archived)
        log.info(
            "%s Slurm job %s (%s) on cluster %s; script, settings and log are in %s",
            answer.status, attempt.job_id, attempt.key, self.job.cluster, attempt.directory,
        )  # fmt: skip
        return Submitted(attempt)

    async def _submit_followup(
        self, client: SlurmClient, job: SlurmJob, attempt: Attempt
    ) -> dict[str, str] | None:
        """Submit the follow-up job of an attempt. Idempotent."""
        assert attempt.job_id
        directory = f"{job.directory}/{attempt_dir.attempt_name(attempt.number)}"
        key = self.task.job_name(attempt.number, FOLLOWUP_SUFFIX)
        resolved = job.resolve(client.cluster).with_dependency(attempt.job_id)
        try:
            answer = await client.submit(
                resolved,
                directory,
                key,
                self.task.owner,
                self.followup_secrets,
                is_first=attempt.is_first,
            )
        except (ConfigError, NotAcceptedYet, SubmissionUnread) as error:
            # The job itself runs already: its task follows it instead of waiting here.
            log.warning("follow-up job of Slurm job %s not submitted: %s", attempt.job_id, error)
            return None
        if answer.status not in (messages.SUBMITTED, messages.FOUND):
            return None
        log.info("%s follow-up Slurm job %s (%s), log in %s", answer.status, answer.job_id, key, directory)
        return {"job_id": answer.job_id, "directory": directory}

    async def _without_bad_nodes(
        self, client: SlurmClient, resolved: ResolvedJob, attempt: Attempt
    ) -> ResolvedJob:
        """Return the job without the nodes that failed under it before, if Slurm accepts that."""
        nodes = attempt.exclude
        if not nodes:
            return resolved
        without, names = resolved.excluding(nodes), ", ".join(nodes)
        try:
            await client.test_only(without, attempt.directory, attempt.key)
        except (ConfigError, NotAcceptedYet) as error:
            log.warning(
                "not excluding %s, which failed before: Slurm refuses the job without: %s", names, error
            )
            return resolved
        log.info("excluding %s, which failed before; clear the task to use it again", names)
        return without


def log_archived(archived: Iterable[str]) -> None:
    """Log the outputs that a helper archived because the attempt starts from zero."""
    for path in archived:
        log.info("starting from zero: outputs of an earlier attempt archived as %s", path)
