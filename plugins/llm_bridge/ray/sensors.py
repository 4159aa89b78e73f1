"""Wait for a Ray job, and bring it back when it, or its cluster, is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from llm_bridge.config.hang import Hang, OnHang
from llm_bridge.config.load import load_cluster
from llm_bridge.failures import ledger
from llm_bridge.failures.decision import with_policy
from llm_bridge.failures.errors import RayJobCannotSucceed, RayJobFailed, SlurmJobFailed
from llm_bridge.failures.handling import Explained
from llm_bridge.failures.kinds import Action
from llm_bridge.ray import allocation, dashboard
from llm_bridge.ray.away import RAY_AWAY, WaitsForRay
from llm_bridge.ray.client import RayTarget, as_target
from llm_bridge.ray.explain import explain_ray
from llm_bridge.ray.operators import RayClusterOperator, RayJobSource, job_from
from llm_bridge.ray.submission import STORE_KEY, ClusterGone, Standing, Where, standing, submit_once
from llm_bridge.ray.triggers import RayJobTrigger
from llm_bridge.ray.words import CANNOT_START
from llm_bridge.slurm import attempts
from llm_bridge.slurm.cancel import close_and_cancel
from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.on_kill import CancelsIfMarked
from llm_bridge.slurm.operators import JobSource
from llm_bridge.slurm.triggers import SlurmJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# Post-training runs for days; the sensor default of Airflow (7 days) would end an honest run.
TIMEOUT_SECONDS = 30 * 24 * 3600
# Below the stage's directory: Ray clusters that this sensor brings up.
AGAIN = "again"


class RayJobSensor(CancelsIfMarked, WaitsForRay, BaseSensorOperator):
    """Wait until a Ray job has ended, the driver's output live in this task's log.

    Watches the Slurm allocation too, if there is one, so that the failure names the real cause ("lost a node")
    instead of "connection refused". Marking the task failed or success stops the Ray job.

    **A second try.** With ``job`` and ``ray_cluster`` a retry, or a clear of this task alone, brings a failed job back:
    it goes on following a job that waits or runs; it submits the next one where the job has failed and its cluster
    lives; and where the cluster is gone it brings up one of its own, without holding a worker slot, and ends it with
    the waiting. When "only failed" tasks are cleared Airflow may clear nothing but this task, so the cluster cannot
    come from elsewhere.

    :param submitted: what ``RaySubmitJobOperator`` returned (``submit.output``). (templated)
    :param job: what to submit again: a :class:`~llm_bridge.ray.job.RayJob` with a ``directory``, or a callable that
        makes one from the task's context. What this task submits goes into ``DIRECTORY/ray-again-N``.
    :param ray_cluster: the Ray cluster to bring up again: a :class:`~llm_bridge.slurm.job.SlurmJob`, or a callable
        that makes one. Its attempts go into ``DIRECTORY/again/attempt-N``.
    :param timeout: seconds after which the job is stopped and the task fails; they count anew with each job.
    :param poll_interval: seconds between two looks at the job's status; empty means the cluster file's.
    :param pending_minutes: a job that Ray has not started after so long, and that asks for more than any node of the
        cluster has, fails with that reason; None waits for ever. One that waits for what others use goes on waiting.
    :param deferrable: False waits in the worker.
    :param hang_minutes: without output of the driver after which the job counts as hung; None for never, or for what
        ``job`` says.
    :param on_hang: ``report`` tells it (include/alerts.yaml) and goes on waiting; ``retry`` stops the job, and cancels
        the Slurm job of its cluster where Ray does not stop it: the task fails for that.
    :returns: ``{"submission_id", "status", "run_s", "result"}``; ``result`` is what the job wrote to
        ``result.json`` beside its settings, if anything.
    :raises RayJobFailed: the job ended FAILED or STOPPED, or its allocation ended.
    :raises RayJobCannotSucceed: so it did, and said that a retry cannot help; or no node has what it asks for.
    :raises SlurmJobFailed: the cluster of its own did not come up.
    """

    template_fields: Sequence[str] = ("submitted",)
    ui_color = "#d5e8d4"
    operator_extra_links = (dashboard.RayDashboardLink(),)

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
        super().__init__(**with_policy(kwargs))
        if (job is None) != (ray_cluster is None):
            raise ValueError(f"task {self.task_id!r}: give both job and ray_cluster, or neither")
        if pending_minutes is not None and pending_minutes <= 0:
            raise ValueError(
                f"task {self.task_id!r}: pending_minutes={pending_minutes}: more than 0, or None"
            )
        self.submitted = submitted
        self.job = job
        self.ray_cluster = ray_cluster
        self.poll_interval = poll_interval
        self.pending_minutes = pending_minutes
        self.deferrable = deferrable
        self.hang = Hang.of(hang_minutes, on_hang)

    def execute(self, context: Context) -> Any:
        where = Where.of(self.submitted)
        try:
            if asyncio.run(self._is_to_be_followed(context, where)):
                asyncio.run(self._give_own_cluster_up(context))
                submission_id, directory = (
                    self.submitted["submission_id"],
                    self.submitted["attempt_directory"],
                )
                return self._follow(context, where, submission_id, directory)
            return self._run_again(context, where)
        except RAY_AWAY as error:
            self.wait_for_ray(where.target, error, self._own_stage(context))

    async def _is_to_be_followed(self, context: Context, where: Where) -> bool:
        """Whether the submitted job decides; else a job of our own takes its place."""
        if self.job is None:
            return True
        submission_id, directory = self.submitted["submission_id"], self.submitted["attempt_directory"]
        if submission_id is None or submission_id in ledger.stored(context).ended:
            return False
        # The first try has not told yet how the job ended. A later one comes because somebody wants it to go on.
        ti: Any = context["ti"]
        if ti.try_number <= 1:
            return True
        try:
            found = await standing(where.target, submission_id, directory or "")
        except ClusterGone as gone:
            self.log.info("Ray job %s cannot go on: %s", submission_id, gone)
            return False
        self.log.info("Ray job %s %s", submission_id, found.value)
        return found in (Standing.GOES_ON, Standing.DONE)

    def _run_again(self, context: Context, where: Where) -> Any:
        """Run a job of our own: on the cluster that was submitted to if that lives, else on one of our own."""
        own = attempts.stored(context)
        last = attempts.stored(context, STORE_KEY)
        if own and last and asyncio.run(self._has_done(context, own, last)):
            target = RayTarget(cluster=where.target.cluster, job_id=own.job_id, directory=own.directory)
            return self._follow(context, Where(target), last.key, last.directory, self._own_stage(context))
        none_of_ours = own is None or own.over or own.was_cleared(context)
        if none_of_ours and not asyncio.run(allocation.ended(where.target)):
            asyncio.run(self._give_own_cluster_up(context))
            try:
                return self._submit(context, where, own_cluster=False)
            except ClusterGone as gone:
                self.log.info("%s", gone)
        return self._bring_up(context)

    async def _has_done(self, context: Context, own: attempts.Attempt, last: attempts.Attempt) -> bool:
        """Whether our own job ended well on our own cluster, and an earlier try could not tell any more."""
        if last.was_cleared(context) or last.job_id != own.job_id:
            return False
        cluster = self._cluster_job(context).cluster
        outcome = await allocation.read_json(cluster, f"{last.directory}/outcome.json")
        return bool(outcome) and outcome["exit_code"] == 0

    def _bring_up(self, context: Context) -> Any:
        job = self._cluster_job(context)
        self.answer_for_job(context["ti"], lambda: close_and_cancel(job.cluster, job.directory))
        up = RayClusterOperator(task_id=self.task_id, job=job)
        attempt = asyncio.run(up.submit(context, job)).attempt
        assert attempt.job_id
        self.log.info("waiting for a Ray cluster of this task's own: Slurm job %s", attempt.job_id)
        context["ti"].xcom_push(
            key="slurm_job", value={"job_id": attempt.job_id, "directory": attempt.directory}
        )
        trigger = SlurmJobTrigger(
            cluster=job.cluster,
            job_id=attempt.job_id,
            directory=attempt.directory,
            ready_file=RayClusterOperator.ready_file,
            deadline=self._deadline(),
        )
        return self._wait(context, trigger, "cluster_ready")

    def cluster_ready(self, context: Context, event: dict[str, Any]) -> Any:
        """The cluster of our own is ready, or it will never be."""
        job = self._cluster_job(context)
        self.answer_for_job(context["ti"], lambda: close_and_cancel(job.cluster, job.directory))
        try:
            if not event["ready"]:
                return self._did_not_come_up(context, job, event)
            return self._submit(context, Where.of(event), own_cluster=True)
        except ClusterGone as gone:
            over = {**event, "ready": False, "info": None, "notice": str(gone)}
            return self._did_not_come_up(context, job, over)
        except RAY_AWAY as error:
            self.hand_job_over()
            self.wait_for_ray(RayTarget(**as_target(event)), error, job.directory)

    def _did_not_come_up(self, context: Context, job: SlurmJob, event: dict[str, Any]) -> Any:
        up = RayClusterOperator(task_id=self.task_id, job=job, retry_delay=self.retry_delay)
        up.again_within_try = False
        try:
            return up.execute_complete(context, event)
        except SlurmJobFailed as error:
            if error.decision and error.decision.action is Action.CONTINUE:
                return self._bring_up(context)
            raise

    def _submit(self, context: Context, where: Where, *, own_cluster: bool) -> Any:
        assert self.job
        job = job_from(self.job, context)
        attempt = asyncio.run(submit_once(context, where, job, again=True))
        own_stage = self._own_stage(context) if own_cluster else None
        return self._follow(context, where, attempt.key, attempt.directory, own_stage)

    def _follow(
        self,
        context: Context,
        where: Where,
        submission_id: str,
        directory: str | None,
        own_stage: str | None = None,
    ) -> Any:
        target = where.target
        dashboard.offer(context["ti"], target.cluster, where.dashboard)
        context["ti"].xcom_push(key="ray_job", value={"submission_id": submission_id, "directory": directory})
        hang = self.hang or (job_from(self.job, context).hang if self.job else None)
        poll = self.poll_interval or (load_cluster(target.cluster).poll_seconds if target.cluster else 15)
        trigger = RayJobTrigger(
            target=as_target(target),
            submission_id=submission_id,
            directory=directory,
            poll_seconds=poll,
            deadline=self._deadline(),
            own_stage=own_stage,
            pending_until=None if self.pending_minutes is None else time.time() + self.pending_minutes * 60,
            hang=hang.model_dump() if hang else None,
        )
        self.answer_for_job(context["ti"], trigger.stop)
        return self._wait(context, trigger, "execute_complete")

    def _wait(self, context: Context, trigger: Any, method: str) -> Any:
        if self.deferrable:
            self.hand_job_over()  # from here on the trigger answers for it
            self.defer(trigger=trigger, method_name=method)
        return getattr(self, method)(context, asyncio.run(trigger.outcome()))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The job or its allocation has ended; a cluster of our own is gone."""
        lost = event["status"] == "ALLOCATION_ENDED"
        said_final = (event["reason"] or {}).get("retry") is False
        final = event["status"] == CANNOT_START or (said_final and not lost)
        explained = self._explain(context, event, final) if event["status"] != "SUCCEEDED" else None
        bad_nodes = [*((event["reason"] or {}).get("nodes") or () if lost else ())]
        bad_nodes += explained.decision.nodes if explained else ()
        if event["own"]:
            attempts.end(context, event["target"]["job_id"], bad_nodes)
        elif bad_nodes:
            attempts.avoid(context, bad_nodes)
        if explained and explained.goes_on:
            where = Where.of(self.submitted)
            try:
                return self._run_again(context, where)
            except RAY_AWAY as error:
                self.wait_for_ray(where.target, error, self._own_stage(context))
        if explained:
            again = self.job is not None
            raise (RayJobCannotSucceed if final else RayJobFailed)(event, explained, again=again)
        job, outcome = event["job"] or {}, event["outcome"]
        if outcome:
            run_s = outcome["ended"] - outcome["started"]
        else:
            run_s = ((job.get("end_time") or 0) - (job.get("start_time") or 0)) / 1000
        return {
            "submission_id": event["submission_id"],
            "status": event["status"],
            "run_s": round(run_s, 1),
            "result": event["result"],
        }

    def _explain(self, context: Context, event: dict[str, Any], final: bool) -> Explained:
        job = None
        if self.job is not None:
            job = job_from(self.job, context)
        cluster = self._cluster_job(context) if self.ray_cluster else None
        return explain_ray(context, self, event, job, cluster, final=final)

    async def _give_own_cluster_up(self, context: Context) -> None:
        """A cluster that an earlier try brought up is of no use any more: another job is followed."""
        own = attempts.stored(context)
        if own is None or own.over or self.ray_cluster is None:
            return
        job = self._cluster_job(context)
        if ids := await close_and_cancel(job.cluster, job.directory):
            self.log.warning("not gone yet: Slurm job %s", ", ".join(ids))
        if own.job_id:
            attempts.end(context, own.job_id)

    def _cluster_job(self, context: Context) -> SlurmJob:
        assert self.ray_cluster
        job = self.ray_cluster(context) if callable(self.ray_cluster) else self.ray_cluster
        return job.model_copy(update={"directory": f"{job.directory}/{AGAIN}"})

    def _own_stage(self, context: Context) -> str | None:
        return self._cluster_job(context).directory if self.ray_cluster else None

    def _deadline(self) -> float:
        limits = [self.timeout]
        if self.execution_timeout:
            limits.append(self.execution_timeout.total_seconds())
        return time.time() + min(limits)
