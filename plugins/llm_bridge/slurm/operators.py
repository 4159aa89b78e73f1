"""Submit a Slurm job and wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowNotFoundException
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException

from llm_bridge.config.errors import ConfigError
from llm_bridge.config.hang import Hang, OnHang
from llm_bridge.config.load import check_model, load_cluster
from llm_bridge.failures.decision import with_policy
from llm_bridge.failures.errors import SlurmJobCannotSucceed, SlurmJobFailed
from llm_bridge.keys import job_key, slug
from llm_bridge.slurm import attempts
from llm_bridge.slurm.away import AWAY, WaitsForCluster
from llm_bridge.slurm.cancel import CANCEL_SECONDS, cancel_and_wait, close_attempts
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.explain import explain_slurm
from llm_bridge.slurm.info import JobInfo, from_outcome
from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.on_kill import CancelsIfMarked
from llm_bridge.slurm.states import Phase
from llm_bridge.slurm.triggers import SlurmJobTrigger
from llm_bridge.transport import connect

if TYPE_CHECKING:
    from airflow.sdk import Context

# How long the job of a cleared task is seen to go.
CLEARED_SECONDS = 120.0

JobSource = SlurmJob | Callable[["Context"], SlurmJob]


@dataclass(frozen=True)
class Submission:
    """What became of a submission.

    :param attempt: the current attempt, with its job's id unless ``done``.
    :param info: the job's state, if it was there before and Slurm was asked.
    :param done: in place of a job, the stage's result that is there already (:meth:`SlurmClient.submit`).
    """

    attempt: attempts.Attempt
    info: JobInfo | None = None
    done: dict[str, Any] | None = None


class SlurmSubmitOperator(CancelsIfMarked, WaitsForCluster):
    """Submit one batch job to Slurm, show its output live, and return its result.

    **How it works.** The job's name is made from DAG, run, task and attempt; it is looked up before anything
    is submitted, so a retry after a worker's death finds the job that is already there. While the job waits
    and runs the task is deferred: it holds no worker slot, and its log shows the job's output. The task fails
    with the job's state, exit code and last lines. Marking the task failed or success cancels the job.

    **After a failure** the cause is looked for on the cluster and told with the exception (``.diagnosis``, also the
    XCom ``diagnosis``). A job that was preempted, lost a node, or trains and ran into its time limit is submitted again
    within the same try, which costs no retry; the rest is up to ``retry_policy``
    (:class:`~llm_bridge.failures.decision.RetryByCause` unless you give your own) and ``retries``.

    **What it does not do.** It has no retries by itself: set ``retries``. ``execution_timeout`` is kept by the trigger,
    because Airflow does not enforce it while a task is deferred (airflow#69678); it counts anew for each job.

    ::

        SlurmSubmitOperator(task_id="count", cluster="local", script="#!/bin/bash\\nsrun hostname\\n",
                            sbatch={"nodes": 2, "gpus_per_node": 1, "time_limit": "10"})

    :param cluster: name of a file in ``include/clusters``. (templated)
    :param script: text of a batch script; its leading ``#SBATCH`` lines are honoured. (templated)
    :param sbatch: what to ask of Slurm for ``script``: the fields of
        :class:`~llm_bridge.slurm.job.Resources`. (templated)
    :param job: instead of the three above, a :class:`~llm_bridge.slurm.job.SlurmJob`, or a callable that makes
        one from the task's context when the task runs.
    :param wait: False returns as soon as the job is submitted; wait with ``SlurmJobSensor``.
    :param then: one more job, or a callable that makes one or None, to queue behind this one at once: it may start when
        this one has ended well (``afterok``), and Slurm drops it when it has not. An XCom ``then`` tells
        ``{"job_id", "directory"}``. Where Slurm refuses it the log says so, and this task goes on.
    :param deferrable: False waits in the worker instead of the triggerer.
    :param hang_minutes: without output, while the job runs, after which it counts as hung; None for never, or for what
        ``job`` says.
    :param on_hang: ``report`` tells it (include/alerts.yaml) and goes on waiting; ``retry`` ends the job, and the task
        fails for that.
    :returns: ``{"job_id", "cluster", "directory", "state", "queue_s", "run_s", "result"}``; ``result`` is what
        the job wrote to ``$ATTEMPT_DIR/result.json``, if anything.
    :raises ConfigError: a wrong value, or Slurm refuses the job; nothing was submitted, and no retry follows.
    :raises SlurmJobFailed: the job ended in any state but COMPLETED.
    :raises SlurmJobCannotSucceed: so it did, and said that a retry cannot help.
    """

    template_fields: Sequence[str] = ("cluster", "script", "sbatch")
    template_fields_renderers = {"script": "bash", "sbatch": "json"}
    ui_color = "#d7e8f5"
    # A job that is of use while it runs (a Ray cluster) names the file that says so.
    ready_file: str | None = None
    # Exit codes with which a job says that a retry cannot help; reason.json with "retry": false says it too.
    final_exit_codes: frozenset[int] = frozenset()
    # Whether it submits the next attempt itself after a failure that must not use up a retry; else it only raises.
    again_within_try = True

    def __init__(
        self,
        *,
        cluster: str | None = None,
        script: str | None = None,
        sbatch: dict[str, Any] | Resources | None = None,
        job: JobSource | None = None,
        then: SlurmJob | Callable[[Context], SlurmJob | None] | None = None,
        wait: bool = True,
        deferrable: bool = True,
        hang_minutes: float | None = None,
        on_hang: OnHang = "report",
        **kwargs: Any,
    ) -> None:
        super().__init__(**with_policy(kwargs))
        if (job is None) == (script is None):
            raise ValueError(f"task {self.task_id!r}: give either job, or cluster and script")
        if script is not None and cluster is None:
            raise ValueError(f"task {self.task_id!r}: script needs cluster, a file name in include/clusters")
        self.cluster = cluster
        self.script = script
        self.sbatch = sbatch.model_dump(exclude_defaults=True) if isinstance(sbatch, Resources) else sbatch
        self.job = job
        self.then = then
        self.wait = wait
        self.deferrable = deferrable
        self.hang = Hang.of(hang_minutes, on_hang)

    def execute(self, context: Context) -> Any:
        job = self.describe(context)
        self.answer_for_job(context["ti"], lambda: self.end_jobs(context, job))
        try:
            found = asyncio.run(self.submit(context, job))
        except AWAY as error:
            self.wait_for(job.cluster, error, job.directory)
        if found.done:
            return self._take(context, job, found.done)
        attempt, info = found.attempt, found.info
        assert attempt.job_id
        context["ti"].xcom_push(
            key="slurm_job", value={"job_id": attempt.job_id, "directory": attempt.directory}
        )
        if not self.wait:
            return {"job_id": attempt.job_id, "cluster": job.cluster, "directory": attempt.directory}
        trigger = SlurmJobTrigger(
            cluster=job.cluster,
            job_id=attempt.job_id,
            directory=attempt.directory,
            ready_file=job.ready_file or self.ready_file,
            deadline=self._deadline(),
            hang=hang.model_dump() if (hang := self.hang or job.hang) else None,
        )
        # A job that is over needs no trigger: read what it left and return.
        over = info is not None and info.phase is Phase.ENDED
        if over or not self.deferrable:
            return self.execute_complete(context, asyncio.run(trigger.outcome()))
        self.hand_job_over()
        self.defer(trigger=trigger, method_name="execute_complete")

    def _take(self, context: Context, job: SlurmJob, done: dict[str, Any]) -> dict[str, Any]:
        """The result that is there already, as if this task had made it."""
        self.hand_job_over()
        self.log.info(
            "nothing to do: Slurm job %s has made this result, with the same settings and from the same inputs: %s. To "
            "make it again: `touch %s/force` on the cluster and clear this task, or name the stage in force_stages",
            done["job_id"], done["directory"], job.directory,
        )  # fmt: skip
        job_id, directory = done["job_id"], done["directory"]
        context["ti"].xcom_push(key="slurm_job", value={"job_id": job_id, "directory": directory})
        info = from_outcome(
            job_id, (done["started"] or {}) | (done["outcome"] or {"ended": 0}) | {"exit_code": 0}
        )
        return {
            "job_id": job_id,
            "cluster": job.cluster,
            "directory": directory,
            "state": info.state,
            "queue_s": None,
            "run_s": round(info.run_seconds, 1),
            "result": done["result"],
        }

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The job has ended, or it is ready."""
        info = JobInfo(**event["info"]) if event["info"] else None
        if not event["ready"] and not (info and info.meaning.good and event["ready_file"] is None):
            reason = event["reason"] or {}
            said_final = reason.get("retry") is False
            hopeless = said_final or (info is not None and info.exit_code in self.final_exit_codes)
            explained = explain_slurm(context, self, event, self.describe(context), final=hopeless)
            attempts.end(context, event["job_id"], [*(reason.get("nodes") or ()), *explained.decision.nodes])
            if explained.goes_on and self.again_within_try:
                return self.execute(context)
            raise (SlurmJobCannotSucceed if hopeless else SlurmJobFailed)(event, explained)
        return {
            "job_id": event["job_id"],
            "cluster": event["cluster"],
            "directory": event["directory"],
            "state": info.state if info else "RUNNING",
            "queue_s": round(info.queue_seconds, 1) if info else None,
            "run_s": round(info.run_seconds, 1) if info else None,
            "result": event["result"],
        }

    def describe(self, context: Context) -> SlurmJob:
        """The job as it is to be submitted."""
        if self.job is not None:
            return self.job(context) if callable(self.job) else self.job
        assert self.cluster
        values = {
            "cluster": self.cluster,
            "script": self.script,
            "resources": self.sbatch or {},
            "directory": task_directory(self.cluster, context),
        }
        return check_model(SlurmJob, values, f"task {self.task_id!r}")

    async def submit(self, context: Context, job: SlurmJob) -> Submission:
        """Find this task's job or submit it."""
        cluster = load_cluster(job.cluster)
        async with connect(cluster) as transport:
            client = SlurmClient(cluster, transport)
            attempt, info = await self._choose_attempt(context, job, client)
            found = Submission(attempt, info) if info else await self._submit(context, job, attempt, client)
            if self.then and not found.done and not (info and info.phase is Phase.ENDED):
                await self._queue_behind(context, found.attempt, client)
            return found

    async def _submit(
        self, context: Context, job: SlurmJob, attempt: attempts.Attempt, client: SlurmClient
    ) -> Submission:
        owner, secrets = _owner(context), _secrets(job)
        job = await self._elsewhere(client, job, attempt.exclude)
        while True:
            attempt.save(context)  # the intent, before anything can be lost
            answer = await client.submit(
                job, attempt.directory, attempt.key, owner, secrets, fresh=attempt.fresh
            )
            if answer["how"] == "done":
                return Submission(attempt, done=answer)
            if answer["how"] != "closed":
                break
            # A teardown, or a try that came after this one, has given the attempt up.
            attempt = attempts.following(context, job.directory, attempt)
        attempt = replace(attempt, job_id=answer["job_id"])
        attempt.save(context)
        for path in answer.get("aside", ()):
            self.log.info("begins anew: what an earlier attempt made is now %s", path)
        self.log.info(
            "%s Slurm job %s (%s) on cluster %s; script, settings and log are in %s",
            answer["how"], attempt.job_id, attempt.key, job.cluster, attempt.directory,
        )  # fmt: skip
        return Submission(attempt)

    async def _queue_behind(self, context: Context, attempt: attempts.Attempt, client: SlurmClient) -> None:
        """Submit ``then`` behind an attempt's job; again is no harm."""
        assert self.then and attempt.job_id
        ti: Any = context["ti"]
        job = self.then(context) if callable(self.then) else self.then
        if job is None:
            return
        directory = f"{job.directory}/attempt-{attempt.number}"
        key = job_key(ti.dag_id, ti.run_id, f"{ti.task_id}.then", ti.map_index, attempt.number)
        try:
            answer = await client.submit(
                job.after(attempt.job_id), directory, key, _owner(context), _secrets(job), fresh=attempt.fresh
            )
        except ConfigError as error:
            self.log.warning("nothing is queued behind Slurm job %s: %s", attempt.job_id, error)
            return
        if answer["how"] in ("submitted", "found"):
            ti.xcom_push(key="then", value={"job_id": answer["job_id"], "directory": directory})
            self.log.info(
                "%s Slurm job %s (%s) behind it, log in %s", answer["how"], answer["job_id"], key, directory
            )

    async def _elsewhere(self, client: SlurmClient, job: SlurmJob, nodes: tuple[str, ...]) -> SlurmJob:
        """The job without the nodes that failed under it before, if Slurm can run it so."""
        if not nodes:
            return job
        elsewhere, names = job.without(nodes, client.cluster), ", ".join(nodes)
        try:
            await client.test_only(elsewhere)
        except ConfigError as error:
            self.log.warning("%s failed before, but the job cannot run without it: %s", names, error)
            return job
        self.log.info("leaves out %s, which failed before; clear the task to use it again", names)
        return elsewhere

    async def _choose_attempt(
        self, context: Context, job: SlurmJob, client: SlurmClient
    ) -> tuple[attempts.Attempt, JobInfo | None]:
        last = attempts.stored(context)
        if last is None:
            return await self.next_attempt(context, job, client, None)
        if last.was_cleared(context):
            if left := await self.end_jobs(context, job, CLEARED_SECONDS):
                raise AirflowException(
                    f"the task was cleared, but Slurm job {', '.join(left)} has not ended yet: look at it with "
                    "`scontrol show job`; the next try looks again"
                )
            self.log.info("the task was cleared: attempt %d is over, the next one begins", last.number)
            return await self.next_attempt(context, job, client, last)
        info = await client.look_up(last.job_id, last.directory) if last.job_id and not last.over else None
        if attempts.goes_on(last, info, service=(job.ready_file or self.ready_file) is not None):
            if info:
                self.log.info(
                    "found Slurm job %s of attempt %d: it %s", info.job_id, last.number, info.meaning.meaning
                )
            return last, info
        if last.number:  # else it only says which nodes failed under another task's job
            how = info.meaning.meaning if info else "has ended without success"
            self.log.info("attempt %d (Slurm job %s) %s", last.number, last.job_id, how)
        return await self.next_attempt(context, job, client, last)

    async def next_attempt(
        self, context: Context, job: SlurmJob, client: SlurmClient, last: attempts.Attempt | None
    ) -> tuple[attempts.Attempt, JobInfo | None]:
        """The attempt after ``last``; with its job's state, if it has a job already."""
        return attempts.following(context, job.directory, last), None

    async def end_jobs(self, context: Context, job: SlurmJob, seconds: float = CANCEL_SECONDS) -> list[str]:
        """Cancel whatever this task has submitted, see :func:`close_and_cancel`; those that are still there."""
        # Also an attempt whose id was never written down may have a job, or be about to get one.
        ids = await close_attempts(job.cluster, job.directory)
        last = attempts.stored(context)
        if last and last.job_id and not last.over and last.job_id not in ids:
            ids.append(last.job_id)  # taken over from another task
        return await cancel_and_wait(job.cluster, ids, seconds) if ids else []

    def _deadline(self) -> float | None:
        limit = self.execution_timeout
        return time.time() + limit.total_seconds() if limit else None


def _owner(context: Context) -> dict[str, Any]:
    """Whose job it is."""
    return {name: getattr(context["ti"], name) for name in ("dag_id", "run_id", "task_id", "map_index")}


def _secrets(job: SlurmJob) -> dict[str, str]:
    return {name: password_of(conn_id) for name, conn_id in job.secrets.items()}


def task_directory(cluster_name: str, context: Context) -> str:
    """``WORKSPACE/DAG/RUN/TASK`` on the cluster."""
    ti: Any = context["ti"]
    index = f"-{ti.map_index}" if ti.map_index >= 0 else ""
    workspace = load_cluster(cluster_name).workspace
    return f"{workspace}/{slug(ti.dag_id)}/{slug(ti.run_id)}/{slug(ti.task_id)}{index}"


def password_of(conn_id: str) -> str:
    """The secret that an Airflow connection holds.

    :raises ConfigError: there is no such connection, or it has no password.
    """
    try:
        password = BaseHook.get_connection(conn_id).password
    except AirflowNotFoundException:
        password = None
    if not password:
        raise ConfigError(
            f"Airflow has no connection {conn_id!r} with a password: create it (Admin > Connections) and put the "
            "token there, or correct the name in the cluster file"
        )
    return password
