"""Start a Ray cluster as a Slurm job, and submit jobs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from llm_bridge.config.loader import check_model
from llm_bridge.exceptions import ClusterUnavailable, RayClusterEnded, ServiceUnavailable
from llm_bridge.operators.base import ClusterOperator, task_directory
from llm_bridge.operators.exceptions import logs_config_errors
from llm_bridge.operators.links import RayDashboardLink, push_link
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.ray import dashboard, startup_timing
from llm_bridge.ray.client import one_connection, ray_client
from llm_bridge.ray.spec import RayJob
from llm_bridge.ray.submission import (
    STORE_KEY,
    RayCluster,
    RaySubmission,
    ray_job_fingerprint,
    stop_and_wait,
)
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm import attempts, fingerprint
from llm_bridge.slurm.attempts import Attempt
from llm_bridge.slurm.cancellation import CANCEL_SECONDS, cancel_and_wait
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.events import SlurmJobEvent
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.slurm.status import JobInfo, Phase
from llm_bridge.slurm.submission import JobNotGone, SlurmSubmission
from llm_bridge.task_state import TaskState

if TYPE_CHECKING:
    from airflow.sdk import Context

RayJobSource = RayJob | Callable[["Context"], RayJob]


class RayClusterOperator(SlurmSubmitOperator):
    """Start a Ray cluster as one Slurm job and return when every GPU of every node has joined.

    The Slurm job continues afterwards; a ``SlurmCancelOperator`` as teardown ends it on every path.

    Args:
        job: As for ``SlurmSubmitOperator``, with ``template="ray_cluster"``.
        adopt_from: Callable that returns, from the task's context, ``{"job_id", "directory"}`` of another task's Slurm
            job that runs or will start such a cluster, or None. Unless that job has ended this task submits nothing,
            waits for it, and owns it from then on.
        skip_if_done: Ray job that the cluster is for, or a callable that makes one from the task's context. If the
            result of that job exists, the task is skipped, and the tasks downstream with it.

    Returns:
        As ``SlurmSubmitOperator``; ``result`` is the cluster's ``cluster.json`` (addresses, nodes, phases; no token).

    Raises:
        SlurmJobFailed: The job ended, or llm-bridge cancelled it, before the cluster was ready.
    """

    ready_file = attempt_dir.CLUSTER
    ui_color = "#d5e8d4"
    operator_extra_links = (RayDashboardLink(),)

    def __init__(
        self,
        *,
        skip_if_done: RayJobSource | None = None,
        adopt_from: Callable[[Context], dict[str, str] | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.skip_if_done = skip_if_done
        self.adopt_from = adopt_from

    def execute(self, context: Context) -> Any:
        """Start the cluster, unless the result that it is for exists."""
        if self.skip_if_done:
            job = self.build_job(context)
            try:
                run_in_task(skip_if_done(job.cluster, job_from(self.skip_if_done, context)))
            except ClusterUnavailable as error:
                self.wait_for_cluster(job.cluster, error, job.directory)
        return super().execute(context)

    def submission(self, context: Context, job: SlurmJob) -> SlurmSubmission:
        """Return the submission of the task's job, which may adopt another task's job."""
        submission = super().submission(context, job)
        if foreign_job := self.adopt_from(context) if self.adopt_from else None:
            submission.adopt = _Adoption(submission.task, job.directory, foreign_job)
        return submission

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the cluster when it is ready, or raise the failure of its job."""
        done = super().execute_complete(context, event)
        address = done["result"]["dashboard"]
        self.log.info("Ray cluster %s", startup_timing.describe(done["result"]["phases"]))
        self.log.info("%s", dashboard.describe(done["cluster"], done["directory"], address))
        push_link(context["ti"], done["cluster"], address)
        return done

    def handle_failure(self, context: Context, event: SlurmJobEvent) -> Any:
        """Cancel the rest of a cluster that will never be ready, then handle the failure as of any Slurm job."""
        run_in_task(cancel_and_wait(event.cluster, [event.job_id]))
        return super().handle_failure(context, event)


class _Adoption:
    """Adoption of another task's job that runs or will start the Ray cluster."""

    def __init__(self, task: TaskState, stage_directory: str, foreign_job: dict[str, str]) -> None:
        self._task = task
        self._stage_directory = stage_directory
        self._foreign_job = foreign_job

    async def __call__(self, client: SlurmClient, last: Attempt | None) -> tuple[Attempt, JobInfo] | None:
        foreign_job, task = self._foreign_job, self._task
        if last is not None and foreign_job["directory"] == last.directory:
            return None
        info = await client.look_up(**foreign_job)
        if info is None or info.phase is Phase.ENDED:
            return None
        # Number 0 or that of the last attempt, so that this task's own next attempt gets the next number.
        following = attempts.next_attempt(task, self._stage_directory, last)
        adopted = replace(
            following,
            number=following.number - 1,
            directory=foreign_job["directory"],
            job_id=foreign_job["job_id"],
            is_first=False,
        )
        adopted.save(task)
        return adopted, info


class RaySubmitJobOperator(ClusterOperator):
    """Submit a job to a Ray cluster under an id chosen by llm-bridge, so that a retry finds it and submits no second.

    The task ends when the job is submitted; wait with :class:`~llm_bridge.sensors.ray.RayJobSensor`. After a clear the
    task first stops the job that it submitted before. While login node, slurmctld or dashboard are unavailable the task
    is deferred.

    Args:
        ray: Output of ``RayClusterOperator`` (``ray_up.output``), or ``{"address": "http://...", "conn_id": ...}`` of
            any Ray cluster. (templated)
        entrypoint: Command as a list of arguments, which this operator quotes for Ray's shell. (templated)
        job: Instead of ``entrypoint``, a :class:`RayJob` or a callable that makes one from the task's context.

    Returns:
        ``{"submission_id", "attempt_directory", "python", "dashboard", ...}`` and the fields of
        :class:`~llm_bridge.ray.client.RayTarget`, for ``RayJobSensor``. If the Slurm job of the Ray cluster has ended,
        ``submission_id`` is None: nothing was submitted, and a ``RayJobSensor`` with ``job`` and ``ray_cluster`` starts
        a cluster itself.

    Raises:
        AirflowSkipException: The result of ``job`` exists.
        RayRequestError: The cluster refuses the job or the token.
    """

    template_fields: Sequence[str] = ("ray", "entrypoint")
    ui_color = "#d5e8d4"
    operator_extra_links = (RayDashboardLink(),)

    def __init__(
        self,
        *,
        ray: Any,
        entrypoint: list[str] | None = None,
        job: RayJobSource | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (job is None) == (entrypoint is None):
            raise ValueError(f"task {self.task_id!r}: give either job or entrypoint")
        self.ray = ray
        self.entrypoint = entrypoint
        self.job = job

    @logs_config_errors
    def execute(self, context: Context) -> dict[str, Any]:
        """Submit the job, or find the one that an earlier try submitted."""
        if self.job is None:
            job = check_model(RayJob, {"entrypoint": self.entrypoint}, f"task {self.task_id!r}")
        else:
            job = job_from(self.job, context)
        cluster, task = RayCluster.from_output(self.ray), TaskState.from_context(context)
        target = cluster.target
        self.take_ownership(context["ti"], lambda: _stop(cluster, task))
        push_link(context["ti"], target.cluster, cluster.dashboard)
        directory = task_directory(target.cluster, context) if target.cluster else None
        found: dict[str, Any] = {"submission_id": None, "attempt_directory": None}
        try:
            submission = RaySubmission(cluster, job, task, task_directory=directory)
            attempt = run_in_task(_submit(submission, target.cluster, job))
            found = {"submission_id": attempt.key, "attempt_directory": attempt.directory or None}
        except RayClusterEnded as ended:
            self.log.warning("Ray job not submitted: %s", ended)
        except ServiceUnavailable as error:
            self.release_ownership()
            self.wait_for_ray(target, error)
        except JobNotGone as error:
            raise AirflowException(str(error)) from None
        return {**found, "python": cluster.python, "dashboard": cluster.dashboard, **target.to_json()}


async def _submit(submission: RaySubmission, cluster: str | None, job: RayJob) -> Attempt:
    async with one_connection(submission.target):
        if cluster:
            await skip_if_done(cluster, job)
        return await submission.submit()


async def _stop(cluster: RayCluster, task: TaskState) -> None:
    if attempt := attempts.load(task, STORE_KEY):
        async with ray_client(cluster.target) as client:
            await stop_and_wait(client, attempt.key, CANCEL_SECONDS)


def job_from(source: RayJobSource, context: Context) -> RayJob:
    """Return an operator's job: ``source`` itself, or the return value of a callable."""
    return source(context) if callable(source) else source


async def skip_if_done(cluster: str, job: RayJob) -> None:
    """Skip the task if the job's result exists.

    Args:
        cluster: Name of the cluster file.
        job: Job with ``output`` and ``directory``; without them nothing is skipped.

    Raises:
        AirflowSkipException: The result exists; the message has its path and the way to rerun the job.
    """
    if not job.output or not job.directory:
        return
    stage = fingerprint.stage_request(job.output, ray_job_fingerprint(job), is_first=True)
    async with open_client(cluster) as slurm:
        found = await slurm.find_result(job.directory, stage)
    if found:
        raise AirflowSkipException(
            "nothing to do: a result with the same settings and inputs exists: "
            f"{found.directory}. To run the job again: `touch {job.directory}/{attempt_dir.FORCE_RERUN}` on the "
            "cluster and clear the task, or name the stage in force_stages"
        )
