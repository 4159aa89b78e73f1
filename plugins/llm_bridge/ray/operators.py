"""Bring a Ray cluster up as a Slurm job, and submit jobs to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.config.load import check_model
from llm_bridge.ray import allocation
from llm_bridge.ray.away import RAY_AWAY, WaitsForRay
from llm_bridge.ray.client import as_target, ray_client
from llm_bridge.ray.job import RayJob
from llm_bridge.ray.submission import STORE_KEY, ClusterGone, Where, of_ray_job, stop_and_wait, submit_once
from llm_bridge.slurm.attempts import Attempt, following, stored
from llm_bridge.slurm.away import AWAY
from llm_bridge.slurm.cancel import CANCEL_SECONDS, cancel_and_wait
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.on_kill import CancelsIfMarked
from llm_bridge.slurm.operators import SlurmSubmitOperator
from llm_bridge.slurm.states import Phase

if TYPE_CHECKING:
    from airflow.sdk import Context

RayJobSource = RayJob | Callable[["Context"], RayJob]


class RayClusterOperator(SlurmSubmitOperator):
    """Bring a Ray cluster up as one Slurm job and return when every GPU of every node has joined.

    The Slurm job goes on afterwards; a ``SlurmCancelOperator`` as teardown ends it on every path.

    :param job: as for ``SlurmSubmitOperator``, with ``template="ray_cluster"``.
    :param adopts: a callable that gives, from the task's context, ``{"job_id", "directory"}`` of a Slurm job of another
        task in which such a cluster is, or will be, brought up: while that has not ended it is waited for, and nothing
        is submitted. This task answers for it from then on. None: there is no such job.
    :param serves: the Ray job that the cluster is for, or a callable that makes one from the task's context: when its
        result is there already, the task is skipped, and the tasks behind it with it.
    :returns: as ``SlurmSubmitOperator``; ``result`` is the cluster's ``cluster.json`` (addresses, nodes,
        phases; no token).
    :raises SlurmJobFailed: the job ended, or was cancelled by us, before the cluster was ready.
    """

    ready_file = "cluster.json"
    ui_color = "#d5e8d4"

    def __init__(
        self,
        *,
        serves: RayJobSource | None = None,
        adopts: Callable[[Context], dict[str, str] | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.serves = serves
        self.adopts = adopts

    def execute(self, context: Context) -> Any:
        if self.serves:
            job = self.describe(context)
            try:
                skip_if_made(job.cluster, job_from(self.serves, context))
            except AWAY as error:
                self.wait_for(job.cluster, error, job.directory)
        return super().execute(context)

    async def next_attempt(
        self, context: Context, job: SlurmJob, client: SlurmClient, last: Attempt | None
    ) -> tuple[Attempt, JobInfo | None]:
        """The job to adopt, if it has not ended; else an attempt of this task's own."""
        there = self.adopts(context) if self.adopts else None
        if there and (last is None or there["directory"] != last.directory):
            info = await client.look_up(**there)
            if info and info.phase is not Phase.ENDED:
                self.log.info("takes over Slurm job %s: it %s", info.job_id, info.meaning.meaning)
                # Number 0, or the last one's: the next attempt of this task's own counts on from there.
                follows = following(context, job.directory, last)
                adopted = replace(
                    follows,
                    number=follows.number - 1,
                    directory=there["directory"],
                    job_id=there["job_id"],
                    fresh=False,
                )
                adopted.save(context)
                return adopted, info
        return await super().next_attempt(context, job, client, last)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The cluster is ready, or it will never be: then nothing of it may stay behind."""
        if not event["ready"]:
            asyncio.run(cancel_and_wait(event["cluster"], [event["job_id"]]))
        return super().execute_complete(context, event)


class RaySubmitJobOperator(CancelsIfMarked, WaitsForRay):
    """Submit a job to a Ray cluster under an id of our own, so that a retry finds it instead of doubling it.

    Returns at once; wait with :class:`~llm_bridge.ray.sensors.RayJobSensor`. When the user clears the task the job that
    it submitted before is stopped first. A login node, slurmctld or dashboard that is away is waited for.

    :param ray: what ``RayClusterOperator`` returned (``ray_up.output``), or ``{"address": "http://...",
        "conn_id": ...}`` of any Ray cluster. (templated)
    :param entrypoint: a command as a list of arguments; quoted here for Ray's shell. (templated)
    :param job: instead of ``entrypoint``, a :class:`RayJob` or a callable that makes one from the task's context.
    :returns: ``{"submission_id", "attempt_directory", "python", ...the target}``, for ``RayJobSensor``. Where the Slurm
        job of the Ray cluster has ended, ``submission_id`` is None: nothing was submitted, and a ``RayJobSensor`` that
        knows how brings up a cluster of its own.
    :raises AirflowSkipException: the result that ``job`` would make is there.
    :raises RayRefused: the cluster refuses the job or the token.
    """

    template_fields: Sequence[str] = ("ray", "entrypoint")
    ui_color = "#d5e8d4"

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

    def execute(self, context: Context) -> dict[str, Any]:
        if self.job is None:
            job = check_model(RayJob, {"entrypoint": self.entrypoint}, f"task {self.task_id!r}")
        else:
            job = job_from(self.job, context)
        where = Where.of(self.ray)
        self.answer_for_job(context["ti"], lambda: self._cancel(context, where))
        found: dict[str, Any] = {"submission_id": None, "attempt_directory": None}
        try:
            if where.target.cluster:
                skip_if_made(where.target.cluster, job)
            attempt = asyncio.run(submit_once(context, where, job))
            found = {"submission_id": attempt.key, "attempt_directory": attempt.directory or None}
        except ClusterGone as gone:
            self.log.warning("nothing was submitted: %s", gone)
        except RAY_AWAY as error:
            self.hand_job_over()
            self.wait_for_ray(where.target, error)
        return {**found, "python": where.python, **as_target(where.target)}

    @staticmethod
    async def _cancel(context: Context, where: Where) -> None:
        attempt = stored(context, STORE_KEY)
        if attempt:
            async with ray_client(where.target) as client:
                await stop_and_wait(client, attempt.key, CANCEL_SECONDS)


def job_from(source: RayJobSource, context: Context) -> RayJob:
    """The job that an operator was given, or what makes it."""
    return source(context) if callable(source) else source


def skip_if_made(cluster: str, job: RayJob) -> None:
    """Skip the task if the job's result is there.

    :raises AirflowSkipException: so it is; the text says where, and how to make it again.
    """
    if not job.result or not job.directory:
        return
    stage = job.result.request(of_ray_job(job), fresh=True)
    if done := asyncio.run(_look_for(cluster, job.directory, stage)):
        raise AirflowSkipException(
            "nothing to do: this result is there, made with the same settings and from the same inputs: "
            f"{done['directory']}. To make it again: `touch {job.directory}/force` on the cluster and clear the task, "
            "or name the stage in force_stages"
        )


async def _look_for(cluster: str, directory: str, stage: dict[str, Any]) -> dict[str, Any] | None:
    async with allocation.slurm_client(cluster) as slurm:
        return await slurm.done(directory, stage)
