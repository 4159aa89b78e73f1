"""Wait for a Ray job that another task submitted, and submit it again in a retry if it failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowException

from llm_bridge.config.hang import Hang, OnHang
from llm_bridge.config.loader import load_cluster
from llm_bridge.diagnosis import progress_ledger
from llm_bridge.diagnosis.explain import FailureReport
from llm_bridge.diagnosis.explain_ray import explain_ray
from llm_bridge.exceptions import RayClusterEnded, ServiceUnavailable
from llm_bridge.operators.base import ClusterOperator
from llm_bridge.operators.exceptions import RayJobFailed, RayJobPermanentError, SlurmJobFailed, fail
from llm_bridge.operators.links import RayDashboardLink, WandbLink, push_link, push_wandb_link
from llm_bridge.operators.ray import RayJobSource, job_from
from llm_bridge.operators.slurm import JOB_XCOM, JobSource, read_secrets
from llm_bridge.ray.client import RayTarget
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.ray.recovery import AwaitCluster, FollowJob, RayRecovery, Submitted, recovery_job
from llm_bridge.ray.submission import RayCluster
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm import attempts
from llm_bridge.slurm.cancellation import cancel_and_wait
from llm_bridge.slurm.events import EndReason, SlurmJobEvent
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.slurm.submission import JobNotGone
from llm_bridge.task_state import TaskState
from llm_bridge.triggers.ray import RayJobTrigger
from llm_bridge.triggers.slurm import SlurmJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# Default timeout of the sensor. Post-training may run for weeks; Airflow's own default is 7 days.
TIMEOUT_SECONDS = 30 * 24 * 3600
# Poll interval for a Ray cluster that has no cluster file.
DEFAULT_POLL_SECONDS = 15.0
JOB_XCOM_RAY = "ray_job"


class RayJobSensor(ClusterOperator, BaseSensorOperator):
    """Wait until a Ray job has ended, and relay the driver's output to this task's log.

    The sensor also monitors the Slurm allocation, if there is one, so that the error names the real cause ("lost a
    node") instead of "connection refused". Marking the task failed or success stops the Ray job.

    **Retries.** With ``job`` and ``ray_cluster``, a retry or a clear of this task alone submits a failed job again
    (:class:`~llm_bridge.ray.recovery.RayRecovery`): to the cluster if that still runs, else to a cluster that the
    sensor starts. The sensor waits for that cluster without holding a worker slot, and cancels it at the end.

    Args:
        submitted: Output of ``RaySubmitJobOperator`` (``submit.output``). (templated)
        job: Job to submit again: a :class:`~llm_bridge.ray.spec.RayJob` with a ``directory``, or a callable that makes
            one from the task's context. The attempts of this task are in ``DIRECTORY/ray-resubmit-N``.
        ray_cluster: Ray cluster to start again: a :class:`~llm_bridge.slurm.spec.SlurmJob`, or a callable that makes
            one. Its attempts are in ``DIRECTORY/recovery/attempt-N``.
        timeout: Seconds after which the job is stopped and the task fails; starts again with each job.
        poll_interval: Seconds between two polls of the job's status; None for the cluster file's ``poll_seconds``.
        pending_minutes: Minutes after which a job fails that Ray has not started and that requests more than any node
            of the cluster has; None waits without limit. A job that waits for resources in use continues to wait.
        deferrable: False waits in the worker.
        hang_minutes: Minutes without output of the driver after which the job counts as hung; None for the setting of
            ``job``, or never.
        on_hang: ``report`` sends an alert (include/alerts.yaml) and continues to wait; ``retry`` stops the job, cancels
            the Slurm job of its cluster if Ray does not stop it, and fails the task.

    Returns:
        ``{"submission_id", "status", "run_s", "result"}``; ``result`` is the content of the job's result file, if it
        wrote one; ``run_s`` is in seconds.

    Raises:
        RayJobFailed: The job ended FAILED or STOPPED, or its allocation ended.
        RayJobPermanentError: As before, and the job reported that a retry cannot help, or no node has the resources
            that it requests.
        SlurmJobFailed: The cluster that the sensor started did not become ready.
    """

    template_fields: Sequence[str] = ("submitted",)
    ui_color = "#d5e8d4"
    operator_extra_links = (RayDashboardLink(), WandbLink())

    def __init__(
        self,
        *,
        submitted: Any,
        job: RayJobSource | None = None,
        ray_cluster: JobSource | None = None,
        poll_interval: float | None = None,
        pending_minutes: float | None = 10,
        deferrable: bool = True,
        hang_minutes: float | None = None,
        on_hang: OnHang = "report",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("timeout", TIMEOUT_SECONDS)
        super().__init__(**kwargs)
        if (job is None) != (ray_cluster is None):
            raise ValueError(f"task {self.task_id!r}: give both job and ray_cluster, or neither")
        if pending_minutes is not None and pending_minutes <= 0:
            raise ValueError(
                f"task {self.task_id!r}: pending_minutes={pending_minutes}: must be greater than 0, or None"
            )
        self.submitted = submitted
        self.job = job
        self.ray_cluster = ray_cluster
        self.poll_interval = poll_interval
        self.pending_minutes = pending_minutes
        self.deferrable = deferrable
        self.hang = Hang.from_settings(hang_minutes, on_hang)

    def execute(self, context: Context) -> Any:
        """Wait for the submitted job, or in a retry for the job that replaces it."""
        return self._next_step(context, resume=False)

    def cluster_ready(self, context: Context, event: dict[str, Any]) -> Any:
        """Submit the job to the cluster that this task started, or handle the failure of that cluster."""
        recovery = self._recovery(context)
        assert recovery
        self.take_ownership(context["ti"], recovery.cancel)
        ended = SlurmJobEvent.from_json(event)
        if ended.end is not EndReason.READY:
            return self._handle_cluster_failure(context, ended)
        self.record_ended(context, ended.directory, "ready")
        cluster = RayCluster.from_output({**event, "result": ended.result})
        try:
            step = run_in_task(recovery.submit_to_own(cluster))
        except RayClusterEnded as error:
            ended = replace(ended, end=EndReason.UNWATCHED, info=None, notice=str(error))
            return self._handle_cluster_failure(context, ended)
        except ServiceUnavailable as error:
            self.release_ownership()
            self.wait_for_ray(cluster.target, error, recovery.ray_cluster.directory)
        return self._follow(context, step)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the result of a job that succeeded, or handle its failure."""
        ended = RayJobEvent.from_json(event)
        if ended.end is not RayEndReason.SUCCEEDED:
            return self._handle_failure(context, ended)
        push_wandb_link(context["ti"], ended.result)
        self._record_ray_end(context, "success")
        if ended.own_cluster and ended.target.job_id:
            attempts.mark_ended(TaskState.from_context(context), ended.target.job_id)
        run_s = 0.0
        if ended.outcome and ended.outcome.started is not None:
            run_s = ended.outcome.ended - ended.outcome.started
        elif ended.job:
            run_s = ((ended.job.end_time or 0) - (ended.job.start_time or 0)) / 1000
        return {
            "submission_id": ended.submission_id,
            "status": ended.end.value,
            "run_s": round(run_s, 1),
            "result": ended.result,
        }

    # ---- steps

    def _next_step(self, context: Context, *, resume: bool) -> Any:
        recovery, submitted = self._recovery(context), self._submitted()
        try:
            if recovery:
                step = run_in_task(recovery.resume() if resume else recovery.start())
            else:
                step = FollowJob(submitted.cluster, self.submitted["submission_id"], submitted.directory)
        except ServiceUnavailable as error:
            own_stage = recovery.ray_cluster.directory if recovery else None
            self.wait_for_ray(submitted.cluster.target, error, own_stage)
        except JobNotGone as error:
            raise AirflowException(str(error)) from None
        return (
            self._await_cluster(context, step)
            if isinstance(step, AwaitCluster)
            else self._follow(context, step)
        )

    def _await_cluster(self, context: Context, step: AwaitCluster) -> Any:
        recovery, attempt = self._recovery(context), step.attempt
        assert recovery and attempt.job_id
        self.take_ownership(context["ti"], recovery.cancel)
        job = {"job_id": attempt.job_id, "directory": attempt.directory}
        context["ti"].xcom_push(key=JOB_XCOM, value=job)
        resources = recovery.ray_cluster.resources
        self.record_submitted(
            context,
            attempt.directory,
            name=f"Slurm job {attempt.job_id} (Ray cluster)",
            job_id=attempt.job_id,
            gpus=resources.nodes * resources.gpus_per_node,
            kind="slurm",
        )
        trigger = SlurmJobTrigger(
            cluster=step.cluster,
            job_id=attempt.job_id,
            directory=attempt.directory,
            ready_file=attempt_dir.CLUSTER,
            deadline=self.deadline(),
        )
        return self._wait(context, trigger, "cluster_ready")

    def _follow(self, context: Context, step: FollowJob) -> Any:
        target = step.cluster.target
        push_link(context["ti"], target.cluster, step.cluster.dashboard)
        job = {"submission_id": step.submission_id, "directory": step.directory}
        context["ti"].xcom_push(key=JOB_XCOM_RAY, value=job)
        self.record_submitted(
            context,
            step.directory,
            name=f"Ray job {step.submission_id}",
            job_id=target.job_id or "",
            gpus=0,
            kind="ray",
        )
        hang = self.hang or (job_from(self.job, context).hang if self.job else None)
        pending = None if self.pending_minutes is None else time.time() + self.pending_minutes * 60
        trigger = RayJobTrigger(
            target=target.to_json(),
            submission_id=step.submission_id,
            directory=step.directory,
            poll_seconds=self._poll_seconds(target),
            deadline=self.deadline(),
            own_stage=step.own_stage,
            pending_until=pending,
            hang=hang.model_dump() if hang else None,
        )
        self.take_ownership(context["ti"], trigger.kill)
        return self._wait(context, trigger, "execute_complete")

    def _wait(self, context: Context, trigger: RayJobTrigger | SlurmJobTrigger, method: str) -> Any:
        if self.deferrable:
            self.release_ownership()  # the trigger owns the job now
            self.defer(trigger=trigger, method_name=method)
        return getattr(self, method)(context, run_in_task(trigger.outcome()))

    # ---- failures

    def _handle_failure(self, context: Context, event: RayJobEvent) -> Any:
        """Resume if that uses no retry, else raise the failure."""
        task, reason = TaskState.from_context(context), event.reason
        final = event.end is RayEndReason.CANNOT_START or (
            reason is not None and not reason.retry and not event.lost_cluster
        )
        report = self._explain(context, task, event, final)
        self._record_ray_end(context, "failed", diagnosis=report.diagnosis)
        bad_nodes = [
            *(reason.nodes if reason and event.lost_cluster else ()),
            *report.decision.nodes,
        ]
        if event.own_cluster and event.target.job_id:
            attempts.mark_ended(task, event.target.job_id, bad_nodes)
        elif bad_nodes:
            attempts.exclude_nodes(task, bad_nodes)
        if report.should_resume:
            return self._next_step(context, resume=True)
        kind = RayJobPermanentError if final else RayJobFailed
        error = kind(event, report, resubmits=self.job is not None)
        fail(error, permanent=final, policy=self.retry_policy)

    def _explain(self, context: Context, task: TaskState, event: RayJobEvent, final: bool) -> FailureReport:
        job = job_from(self.job, context) if self.job else None
        cluster = self._cluster_job(context)
        report = run_in_task(
            explain_ray(task, event, job, cluster, retry_delay=self.delay_before_retry(), final=final)
        )
        return self.push_diagnosis(context, report)

    def _handle_cluster_failure(self, context: Context, event: SlurmJobEvent) -> Any:
        """Start the next cluster if that uses no retry, else raise the failure of this one."""
        run_in_task(cancel_and_wait(event.cluster, [event.job_id]))
        final = event.reason is not None and not event.reason.retry
        report = self.close_failed_job(context, event, self._cluster_job(context), final)
        if report.should_resume:
            return self._next_step(context, resume=True)
        fail(SlurmJobFailed(event, report), permanent=False, policy=self.retry_policy)

    def _record_ray_end(self, context: Context, result: str, **facts: Any) -> None:
        ti: Any = context["ti"]
        job = ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=JOB_XCOM_RAY)
        self.record_ended(context, job.get("directory") if isinstance(job, dict) else None, result, **facts)

    # ---- parameters

    def _submitted(self) -> Submitted:
        cluster = RayCluster.from_output(self.submitted)
        return Submitted(cluster, self.submitted["submission_id"], self.submitted["attempt_directory"])

    def _recovery(self, context: Context) -> RayRecovery | None:
        if self.job is None or self.ray_cluster is None:
            return None
        task, cluster = TaskState.from_context(context), _job_from(self.ray_cluster, context)
        return RayRecovery(
            self._submitted(),
            job_from(self.job, context),
            cluster,
            task,
            secrets=read_secrets(cluster),
            failed=progress_ledger.load(task).ended,
        )

    def _cluster_job(self, context: Context) -> SlurmJob | None:
        return recovery_job(_job_from(self.ray_cluster, context)) if self.ray_cluster else None

    def _poll_seconds(self, target: RayTarget) -> float:
        if self.poll_interval:
            return self.poll_interval
        return load_cluster(target.cluster).poll_seconds if target.cluster else DEFAULT_POLL_SECONDS

    def deadline(self) -> float:
        """Return the earlier end of ``timeout`` and ``execution_timeout`` in epoch seconds."""
        limits = [self.timeout]
        if self.execution_timeout:
            limits.append(self.execution_timeout.total_seconds())
        return time.time() + min(limits)


def _job_from(source: JobSource, context: Context) -> SlurmJob:
    return source(context) if callable(source) else source
