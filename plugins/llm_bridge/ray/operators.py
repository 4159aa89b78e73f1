"""Bring a Ray cluster up as a Slurm job, and submit jobs to it."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from pydantic import model_validator

from llm_bridge.config.load import check_model, load_cluster
from llm_bridge.config.values import AbsolutePath, SlurmWord, Strict
from llm_bridge.keys import job_key
from llm_bridge.ray.client import ENDED, RayClient, RayTarget, ray_client
from llm_bridge.ray.triggers import as_target
from llm_bridge.slurm.attempts import STORE_KEY, clear_number
from llm_bridge.slurm.cancel import cancel_and_wait
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.fingerprint import Result
from llm_bridge.slurm.operators import SlurmSubmitOperator
from llm_bridge.slurm.script import launchers
from llm_bridge.transport import connect

if TYPE_CHECKING:
    from airflow.sdk import Context


class RayClusterOperator(SlurmSubmitOperator):
    """Bring a Ray cluster up as one Slurm job and return when every GPU of every node has joined.

    The Slurm job goes on afterwards; a ``SlurmCancelOperator`` as teardown ends it on every path.

    :param job: as for ``SlurmSubmitOperator``, with ``template="ray_cluster"``.
    :returns: as ``SlurmSubmitOperator``; ``result`` is the cluster's ``cluster.json`` (addresses, nodes,
        phases; no token).
    :raises SlurmJobFailed: the job ended, or was cancelled by us, before the cluster was ready.
    """

    ready_file = "cluster.json"
    ui_color = "#d5e8d4"

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The cluster is ready, or it will never be: then nothing of it may stay behind."""
        if not event["ready"]:
            asyncio.run(cancel_and_wait(event["cluster"], [event["job_id"]]))
        return super().execute_complete(context, event)


class RayJob(Strict):
    """What to run on a Ray cluster.

    Either ``entrypoint``, a command as a list of arguments, or ``program``, a Python file of ``include/jobs``
    that gets the path of its ``settings`` as its only argument; then ``directory`` is the stage's directory.
    """

    entrypoint: list[str] | None = None
    program: SlurmWord | None = None
    settings: dict[str, Any] = {}
    directory: AbsolutePath | None = None
    # What the stage leaves behind, as in SlurmJob.
    result: Result | None = None
    # The dashboard shows it to everybody who reaches it: no secret belongs in here.
    runtime_env: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> RayJob:
        if (self.entrypoint is None) == (self.program is None):
            raise ValueError("give either entrypoint or program")
        if self.program and not self.directory:
            raise ValueError("program needs directory, the stage's directory on the cluster")
        return self


class RaySubmitJobOperator(BaseOperator):
    """Submit a job to a Ray cluster under an id of our own, so that a retry finds it instead of doubling it.

    Returns at once; wait with :class:`~llm_bridge.ray.sensors.RayJobSensor`.

    :param ray: what ``RayClusterOperator`` returned (``ray_up.output``), or ``{"address": "http://...",
        "conn_id": ...}`` of any Ray cluster. (templated)
    :param entrypoint: a command as a list of arguments; quoted here for Ray's shell. (templated)
    :param job: instead of ``entrypoint``, a :class:`RayJob` or a callable that makes one from the task's context.
    :returns: ``{"submission_id", "attempt_directory", ...the target}``, for ``RayJobSensor``.
    :raises RayRefused: the cluster refuses the job or the token.
    """

    template_fields: Sequence[str] = ("ray", "entrypoint")
    ui_color = "#d5e8d4"

    def __init__(
        self,
        *,
        ray: Any,
        entrypoint: list[str] | None = None,
        job: RayJob | Callable[[Context], RayJob] | None = None,
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
            job = self.job(context) if callable(self.job) else self.job
        return asyncio.run(self._submit(context, job))

    async def _submit(self, context: Context, job: RayJob) -> dict[str, Any]:
        target = as_target(self.ray)
        async with ray_client(RayTarget(**target)) as client:
            number, found = await self._choose_attempt(context, client)
            submission_id = self._key(context, number)
            directory = f"{job.directory}/ray-{number}" if job.directory else None
            if not found:
                context["task_state_store"].set(
                    STORE_KEY, {"number": number, "clear_number": clear_number(context)}
                )
                command = await self._command(job, directory)
                found = not await client.submit(
                    submission_id,
                    shlex.join(command),
                    runtime_env=job.runtime_env,
                    metadata={"llm_bridge": submission_id},
                )
            self.log.info("%s Ray job %s", "found" if found else "submitted", submission_id)
        return {"submission_id": submission_id, "attempt_directory": directory, **target}

    async def _choose_attempt(self, context: Context, client: RayClient) -> tuple[int, bool]:
        """The number of the attempt, and whether Ray has its job already."""
        last: Any = context["task_state_store"].get(STORE_KEY) or {}
        number = last.get("number", 1)
        cleared = bool(last) and last["clear_number"] != clear_number(context)
        while job := await client.job(self._key(context, number)):
            if not cleared and job["status"] not in ("FAILED", "STOPPED"):
                return number, True
            if job["status"] not in ENDED:
                await client.stop(self._key(context, number))
            number += 1
        return number, False

    async def _command(self, job: RayJob, directory: str | None) -> list[str]:
        if job.entrypoint:
            return job.entrypoint
        assert directory
        cluster = load_cluster(self.ray["cluster"])
        async with connect(cluster) as transport:
            texts = {"settings.json": json.dumps(job.settings, indent=2, ensure_ascii=False), **launchers()}
            await SlurmClient(cluster, transport).place(directory, texts)
        return [self.ray["result"]["python"], f"{directory}/jobs/{job.program}", f"{directory}/settings.json"]

    @staticmethod
    def _key(context: Context, number: int) -> str:
        ti: Any = context["ti"]
        return job_key(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, number)
