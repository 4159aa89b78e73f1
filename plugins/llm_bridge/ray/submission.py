"""Submit a task's Ray job exactly once, and read the state of submissions. Imports no Airflow."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llm_bridge.exceptions import RayClusterEnded, RayUnavailable
from llm_bridge.ray import cluster_job
from llm_bridge.ray.client import RayClient, RayJobDetails, RayTarget, one_connection, ray_client
from llm_bridge.ray.spec import RayJob
from llm_bridge.remote import attempt_dir, node_archive
from llm_bridge.remote.attempt_dir import Outcome
from llm_bridge.slurm import attempts, fingerprint
from llm_bridge.slurm.attempts import Attempt
from llm_bridge.slurm.batch_script import AttemptFiles, ray_job_wrapper
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.submission import JobNotGone, log_archived
from llm_bridge.task_state import TaskState

STORE_KEY = "llm_bridge_ray_attempt"
# Ray ends a job within 4 s of the request to stop it (job_supervisor.py: RAY_JOB_STOP_WAIT_TIME_S).
STOP_TIMEOUT_SECONDS = 30.0
# Between two polls of a job that was stopped.
STOP_POLL_INTERVAL_SECONDS = 0.5

log = logging.getLogger(__name__)


class SubmissionState(Enum):
    """State of a submission; the value completes the sentence "Ray job X ..."."""

    UNKNOWN = "is not known to Ray"
    RUNNING = "waits or runs"
    SUCCEEDED = "has succeeded"
    FAILED = "has failed"


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster to submit to.

    Attributes:
        target: Location of the cluster.
        python: Path of the Python of the cluster's environment, for jobs that are a program of llm-bridge.
        dashboard: ``http://host:port`` in the cluster's own network.
    """

    target: RayTarget
    python: str | None = None
    dashboard: str | None = None

    @classmethod
    def from_output(cls, ray: Mapping[str, Any]) -> RayCluster:
        """Return the cluster named in an operator's output, or in ``{"address": ...}``."""
        target, result = RayTarget.from_output(ray), ray.get("result") or {}
        dashboard = ray.get("dashboard") or result.get("dashboard") or target.address
        return cls(target, ray.get("python") or result.get("python"), dashboard)


def ray_job_fingerprint(job: RayJob) -> str:
    """Return a Ray job's fingerprint: a hash of its program or command, and its settings."""
    return fingerprint.compute(job.program or json.dumps(job.entrypoint), job.settings)


async def submission_state(target: RayTarget, submission_id: str, directory: str) -> SubmissionState:
    """Return the state of a submission: from its outcome file if it has written one, else from Ray.

    Args:
        target: Ray cluster that the job was submitted to.
        submission_id: Ray's id of the job.
        directory: The submission's directory on the cluster; empty if there is none.

    Raises:
        RayClusterEnded: There is no outcome file, and the cluster has ended.
        RayUnavailable: The dashboard does not answer, though the cluster has not ended.
        ClusterUnavailable: Login node or slurmctld do not answer.
    """
    if target.cluster and directory and (outcome := await _read_outcome(target.cluster, directory)):
        return SubmissionState.FAILED if outcome.exit_code else SubmissionState.SUCCEEDED
    try:
        async with ray_client(target) as client:
            return _state_of(await client.job(submission_id))
    except RayUnavailable as error:
        if end := await cluster_job.ended(target):
            raise RayClusterEnded(f"the Ray cluster has ended: {end}") from error
        raise


class RaySubmission:
    """Submission of one task's Ray job.

    Args:
        cluster: Ray cluster to submit to.
        job: Job to submit.
        task: Task that the job belongs to, with a store that outlives its tries.
        task_directory: The task's directory on the cluster, for a job without a directory of its own; None if the Ray
            cluster is no Slurm job of llm-bridge.
        resubmits: True if the job replaces one that another task submitted: it resumes from that job's outputs.
    """

    def __init__(
        self,
        cluster: RayCluster,
        job: RayJob,
        task: TaskState,
        *,
        task_directory: str | None = None,
        resubmits: bool = False,
    ) -> None:
        self.cluster = cluster
        self.target = cluster.target
        self.job = job
        self.task = task
        self.resubmits = resubmits
        stage = job.directory or task_directory
        prefix = attempt_dir.RAY_RESUBMIT_PREFIX if resubmits else attempt_dir.RAY_PREFIX
        # Prefix of the attempts' directories, which their number follows; empty if they have none.
        self._directories = f"{stage}/{prefix}" if stage else ""
        self._runs_on = self.target.job_id or self.target.address or ""

    async def submit(self) -> Attempt:
        """Find this task's Ray job or submit it.

        A retry finds a job that waits, runs or has succeeded. The next job is submitted if the last one failed, if it
        was submitted to another cluster, or if the user cleared the task; then the last one is stopped first and has to
        end.

        Returns:
            The attempt; its ``job_id`` names the cluster that it runs on (id of the Slurm job, or address).

        Raises:
            RayClusterEnded: The cluster has ended.
            RayRequestError: The cluster refuses the job or the token.
            RayUnavailable: The dashboard does not answer, though the cluster has not ended.
            ClusterUnavailable: Login node or slurmctld do not answer.
            JobNotGone: The task was cleared, and its previous job does not end.
        """
        async with one_connection(self.target):
            return await self._submit()

    async def _submit(self) -> Attempt:
        attempt = await self._choose_attempt()
        while True:
            found = await self._state(attempt)
            if found in (SubmissionState.SUCCEEDED, SubmissionState.RUNNING):
                log.info("found Ray job %s: it %s", attempt.key, found.value)
                attempt.save(self.task, STORE_KEY)
                return attempt
            if found is SubmissionState.UNKNOWN:
                break
            log.info("Ray job %s %s; submitting the next one", attempt.key, found.value)
            attempt = self._attempt(attempt.number + 1, is_first=attempt.is_first)
        attempt.save(
            self.task, STORE_KEY
        )  # before the submission: a worker that dies after it must find the job
        command = await self._put_files(attempt)
        async with ray_client(self.target) as client:
            new = await client.submit(
                attempt.key,
                shlex.join(command),
                runtime_env=self.job.runtime_env,
                metadata={"llm_bridge": attempt.key},
                **self.job.resources(),
            )
        log.info("%s Ray job %s", "submitted" if new else "found", attempt.key)
        return attempt

    async def _choose_attempt(self) -> Attempt:
        last = attempts.load(self.task, STORE_KEY)
        if last is None:
            return self._attempt(1, is_first=not self.resubmits)
        cleared = last.was_cleared(self.task)
        if cleared:
            log.info("task was cleared; submitting the next job in place of Ray job %s", last.key)
            if last.job_id == self._runs_on:
                await self._stop(last)
        return self._attempt(last.number + 1, is_first=cleared) if cleared or last.over else last

    async def _state(self, attempt: Attempt) -> SubmissionState:
        if attempt.job_id == self._runs_on:
            return await submission_state(self.target, attempt.key, attempt.directory)
        # It was submitted to a previous cluster, which has ended.
        if not self.target.cluster:
            return SubmissionState.FAILED
        outcome = await _read_outcome(self.target.cluster, attempt.directory)
        succeeded = outcome is not None and not outcome.exit_code
        return SubmissionState.SUCCEEDED if succeeded else SubmissionState.FAILED

    async def _stop(self, attempt: Attempt) -> None:
        try:
            async with ray_client(self.target) as client:
                ended = await stop_and_wait(client, attempt.key)
        except RayUnavailable:
            if await cluster_job.ended(self.target):
                return  # every job on it has ended with it
            raise
        if not ended:
            raise JobNotGone(
                f"task was cleared, but Ray job {attempt.key} has not ended {STOP_TIMEOUT_SECONDS:.0f} s after the "
                "request to stop it: check the Ray dashboard; the next try checks again"
            )

    async def _put_files(self, attempt: Attempt) -> list[str]:
        """Write the job's files on the cluster; return the command that runs the job."""
        job = self.job
        if not self.target.cluster:
            if not job.entrypoint:
                raise ValueError(
                    f"program {job.program!r} needs a Ray cluster that is a Slurm job of llm-bridge; use entrypoint on "
                    "a cluster that is reached by its address"
                )
            return job.entrypoint
        directory = attempt.directory
        files = AttemptFiles({attempt_dir.RAY_JOB: ray_job_wrapper(), attempt_dir.RAY_JOB_ID: attempt.key})
        command = job.entrypoint
        if not command:
            files.texts[attempt_dir.SETTINGS] = json.dumps(job.settings, indent=2, ensure_ascii=False)
            files.binaries[attempt_dir.NODE_ARCHIVE] = node_archive.build()
            archive = f"{directory}/{attempt_dir.NODE_ARCHIVE}"
            settings = f"{directory}/{attempt_dir.SETTINGS}"
            command = [str(self.cluster.python), archive, str(job.program), settings]
        stage = None
        if job.output:
            stage = fingerprint.stage_request(job.output, ray_job_fingerprint(job), is_first=attempt.is_first)
        async with open_client(self.target.cluster) as slurm:
            log_archived(await slurm.put_files(directory, files, stage))
        return ["/bin/bash", f"{directory}/{attempt_dir.RAY_JOB}", directory, *command]

    def _attempt(self, number: int, *, is_first: bool) -> Attempt:
        return Attempt(
            number=number,
            key=self.task.job_name(number),
            directory=f"{self._directories}{number}" if self._directories else "",
            clear_number=self.task.clear_number,
            max_tries=self.task.max_tries,
            job_id=self._runs_on,
            is_first=is_first,
        )


async def stop_and_wait(client: RayClient, submission_id: str, seconds: float = STOP_TIMEOUT_SECONDS) -> bool:
    """Stop a Ray job and poll until it has ended.

    A job that Ray could never start stays PENDING after the request to stop it. It counts as ended: it runs nothing.

    Args:
        client: Client of the cluster's dashboard.
        submission_id: Ray's id of the job.
        seconds: Timeout; 0 sends the request without polling.

    Returns:
        True if the job has ended within ``seconds``.
    """
    until = time.monotonic() + seconds
    job = await client.job(submission_id)
    if job is None or job.has_ended:
        return True
    await client.stop(submission_id)
    while time.monotonic() < until:
        job = await client.job(submission_id)
        if job is None or job.has_ended:
            return True
        await asyncio.sleep(STOP_POLL_INTERVAL_SECONDS)
    return job.status == "PENDING"


async def _read_outcome(cluster: str, directory: str) -> Outcome | None:
    async with open_client(cluster) as slurm:
        found: Outcome | None = attempt_dir.parse(
            Outcome, await slurm.read_json(f"{directory}/{attempt_dir.OUTCOME}")
        )
        return found


def _state_of(job: RayJobDetails | None) -> SubmissionState:
    if job is None:
        return SubmissionState.UNKNOWN
    if not job.has_ended:
        return SubmissionState.RUNNING
    return SubmissionState.SUCCEEDED if job.status == "SUCCEEDED" else SubmissionState.FAILED
