"""Recover a Ray job in a retry of the waiting task, after the job or its cluster failed. Imports no Airflow.

A retry follows a job that still waits or runs. If the job failed and its cluster runs, the retry submits the job again;
if the cluster has ended, the retry starts a cluster that belongs to the waiting task. It has to, because a clear of
"only failed" tasks may clear nothing but the waiting task, so no other task starts a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llm_bridge.exceptions import RayClusterEnded
from llm_bridge.ray import cluster_job
from llm_bridge.ray.client import RayTarget
from llm_bridge.ray.spec import RayJob
from llm_bridge.ray.submission import (
    STORE_KEY,
    RayCluster,
    RaySubmission,
    SubmissionState,
    submission_state,
)
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome
from llm_bridge.slurm import attempts
from llm_bridge.slurm.attempts import Attempt
from llm_bridge.slurm.cancellation import close_and_cancel
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.slurm.status import JobInfo
from llm_bridge.slurm.submission import SlurmSubmission
from llm_bridge.task_state import TaskState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FollowJob:
    """Next step: follow this Ray job.

    Attributes:
        cluster: Ray cluster that the job runs on.
        submission_id: Ray's id of the job.
        directory: The submission's directory on the cluster; None if there is none.
        own_stage: Stage directory of the Ray cluster if the task started it itself, else None.
    """

    cluster: RayCluster
    submission_id: str
    directory: str | None
    own_stage: str | None = None


@dataclass(frozen=True)
class AwaitCluster:
    """Next step: wait until the Ray cluster in this attempt's Slurm job is ready.

    Attributes:
        cluster: Name of the cluster file.
        attempt: Attempt that the Slurm job belongs to.
    """

    cluster: str
    attempt: Attempt


@dataclass(frozen=True)
class Submitted:
    """Ray job that another task submitted.

    Attributes:
        cluster: Ray cluster that it was submitted to.
        submission_id: Ray's id of the job; None if the Ray cluster had ended and nothing was submitted.
        directory: The submission's directory on the cluster; None if there is none.
    """

    cluster: RayCluster
    submission_id: str | None
    directory: str | None


class RayRecovery:
    """Recovery of one Ray job by the task that waits for it.

    Args:
        submitted: Ray job that another task submitted.
        job: Job to submit again.
        ray_cluster: Slurm job of the Ray cluster to start again; its stage directory becomes a subdirectory of the
            original's.
        task: The waiting task, with a store that outlives its tries.
        secrets: File name -> text, for the Ray cluster's Slurm job.
        failed: Submission ids of jobs that are known to have failed.
    """

    def __init__(
        self,
        submitted: Submitted,
        job: RayJob,
        ray_cluster: SlurmJob,
        task: TaskState,
        *,
        secrets: Mapping[str, str],
        failed: Collection[str],
    ) -> None:
        self.submitted = submitted
        self.job = job
        self.ray_cluster = recovery_job(ray_cluster)
        self.task = task
        self.secrets = secrets
        self.failed = failed

    async def start(self) -> FollowJob | AwaitCluster:
        """Return the first step of a try: follow the submitted job, or recover with a job of the task's own.

        Raises:
            ConfigError: Slurm refuses the Ray cluster's job.
            RayRequestError: The Ray cluster refuses the job or the token.
            ServiceUnavailable: Login node, slurmctld or dashboard do not answer.
            JobNotGone: The task was cleared, and its previous job does not end.
        """
        submitted = self.submitted
        if submitted.submission_id and await self._is_current(submitted.submission_id):
            await self._release_own_cluster()
            return FollowJob(submitted.cluster, submitted.submission_id, submitted.directory)
        return await self.resume()

    async def resume(self) -> FollowJob | AwaitCluster:
        """Return the next step of a recovery with a job of the task's own; raises as :meth:`start`.

        The job runs on the cluster of the original job if that still runs, else on a cluster that this task starts.
        """
        own, last = attempts.load(self.task), attempts.load(self.task, STORE_KEY)
        submitted_to = self.submitted.cluster
        if own and last and await self._has_succeeded(own, last):
            target = RayTarget(
                cluster=submitted_to.target.cluster, job_id=own.job_id, directory=own.directory
            )
            return FollowJob(RayCluster(target), last.key, last.directory, self.ray_cluster.directory)
        no_own_cluster = own is None or own.over or own.was_cleared(self.task)
        if no_own_cluster and not await cluster_job.ended(submitted_to.target):
            await self._release_own_cluster()
            try:
                return await self._submit(submitted_to, None)
            except RayClusterEnded as ended:
                log.info("%s; starting a Ray cluster for this task", ended)
        return await self._bring_up()

    async def submit_to_own(self, cluster: RayCluster) -> FollowJob:
        """Submit the job to the task's own cluster, which is ready.

        Raises as :meth:`start`, and in addition:

        Raises:
            RayClusterEnded: The cluster has ended since.
        """
        return await self._submit(cluster, self.ray_cluster.directory)

    async def cancel(self) -> dict[str, JobInfo]:
        """Cancel the task's own cluster; return its Slurm jobs that have not ended, by id."""
        return await close_and_cancel(self.ray_cluster.cluster, self.ray_cluster.directory)

    async def _is_current(self, submission_id: str) -> bool:
        """Return True if the submitted job is the one to follow, False if a job of the task's own replaces it."""
        if submission_id in self.failed:
            return False
        # The first try still has to report how the job ended. A later try exists to have it resumed.
        if self.task.try_number <= 1:
            return True
        target = self.submitted.cluster.target
        try:
            found = await submission_state(target, submission_id, self.submitted.directory or "")
        except RayClusterEnded as ended:
            log.info("Ray job %s cannot be resumed: %s", submission_id, ended)
            return False
        log.info("Ray job %s %s", submission_id, found.value)
        return found in (SubmissionState.RUNNING, SubmissionState.SUCCEEDED)

    async def _has_succeeded(self, own: Attempt, last: Attempt) -> bool:
        """Return True if the task's own job succeeded on its own cluster and an earlier try could not report it."""
        if last.was_cleared(self.task) or last.job_id != own.job_id:
            return False
        async with open_client(self.ray_cluster.cluster) as client:
            values = await client.read_json(f"{last.directory}/{attempt_dir.OUTCOME}")
        outcome: Outcome | None = attempt_dir.parse(Outcome, values)
        return outcome is not None and outcome.exit_code == 0

    async def _submit(self, cluster: RayCluster, own_stage: str | None) -> FollowJob:
        attempt = await RaySubmission(cluster, self.job, self.task, resubmits=True).submit()
        return FollowJob(cluster, attempt.key, attempt.directory, own_stage)

    async def _bring_up(self) -> AwaitCluster:
        replaced = self.submitted.cluster.target.directory
        submission = SlurmSubmission(
            self.ray_cluster, self.task, self.secrets, service=True, replaces=replaced
        )
        attempt = (await submission.submit()).attempt
        log.info("waiting for the Ray cluster that this task started: Slurm job %s", attempt.job_id)
        return AwaitCluster(self.ray_cluster.cluster, attempt)

    async def _release_own_cluster(self) -> None:
        """Cancel a cluster that an earlier try started: this try follows another job."""
        own = attempts.load(self.task)
        if own is None or own.over:
            return
        if left := await self.cancel():
            log.warning("Slurm job %s has not ended yet after scancel", ", ".join(left))
        if own.job_id:
            attempts.mark_ended(self.task, own.job_id)


def recovery_job(ray_cluster: SlurmJob) -> SlurmJob:
    """Return the Slurm job of a Ray cluster that the waiting task starts, in a stage directory of its own."""
    directory = f"{ray_cluster.directory}/{attempt_dir.RECOVERY}"
    return ray_cluster.model_copy(update={"directory": directory})
