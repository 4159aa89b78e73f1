"""Submit a Ray job once, and know what has become of it: the next try asks here before it submits anything."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException

from llm_bridge.keys import job_key
from llm_bridge.ray import allocation
from llm_bridge.ray.client import ENDED, RayClient, RayTarget, RayUnreachable, as_target, ray_client
from llm_bridge.ray.job import RayJob
from llm_bridge.slurm import fingerprint
from llm_bridge.slurm.attempts import Attempt, clear_number, stored
from llm_bridge.slurm.operators import task_directory
from llm_bridge.slurm.script import launchers

if TYPE_CHECKING:
    from airflow.sdk import Context

STORE_KEY = "llm_bridge_ray_attempt"
# The file of include/jobs that a Ray job is started through where its output is to be kept on the cluster's disk.
WRAPPER = "ray_job.sh"
# Ray ends a job within 4 s of being asked to (job_supervisor.py: RAY_JOB_STOP_WAIT_TIME_S).
STOP_SECONDS = 30.0

log = logging.getLogger(__name__)


class ClusterGone(Exception):
    """The Slurm job of the Ray cluster has ended, and with it every job on that cluster."""


class Standing(Enum):
    """What has become of a submission."""

    UNKNOWN = "is not known to Ray"
    GOES_ON = "waits or runs"
    DONE = "has ended well"
    FAILED = "has ended without success"


@dataclass(frozen=True)
class Where:
    """A Ray cluster to submit to.

    :param python: of the environment that the cluster runs in, for jobs that are a program.
    :param dashboard: ``http://host:port``, as the cluster's own network has it.
    """

    target: RayTarget
    python: str | None = None
    dashboard: str | None = None

    @classmethod
    def of(cls, ray: dict[str, Any]) -> Where:
        """What an operator returned, or ``{"address": ...}``."""
        target, result = RayTarget(**as_target(ray)), ray.get("result") or {}
        dashboard = ray.get("dashboard") or result.get("dashboard") or target.address
        return cls(target, ray.get("python") or result.get("python"), dashboard)


async def standing(target: RayTarget, submission_id: str, directory: str) -> Standing:
    """What has become of a submission: by the file that it leaves as it ends, else by Ray.

    :param directory: the submission's, on the cluster; empty where there is none.
    :raises ClusterGone: it left no such file, and its cluster has ended.
    :raises RayUnreachable: the dashboard does not answer, though the cluster has not ended.
    :raises LoginNodeUnreachable: no connection.
    :raises SlurmUnreachable: slurmctld does not answer.
    """
    if target.cluster and directory:
        outcome = await allocation.read_json(target.cluster, f"{directory}/outcome.json")
        if outcome:
            return Standing.FAILED if outcome["exit_code"] else Standing.DONE
    try:
        async with ray_client(target) as client:
            return _read(await client.job(submission_id))
    except RayUnreachable as error:
        if end := await allocation.ended(target):
            raise ClusterGone(f"the Ray cluster is gone: {end}") from error
        raise


async def _left_by(target: RayTarget, attempt: Attempt) -> Standing:
    """What has become of a submission to an earlier cluster, which has ended."""
    if not target.cluster:
        return Standing.FAILED
    outcome = await allocation.read_json(target.cluster, f"{attempt.directory}/outcome.json")
    return Standing.DONE if outcome and not outcome["exit_code"] else Standing.FAILED


def _read(job: dict[str, Any] | None) -> Standing:
    if job is None:
        return Standing.UNKNOWN
    if job["status"] not in ENDED:
        return Standing.GOES_ON
    return Standing.DONE if job["status"] == "SUCCEEDED" else Standing.FAILED


async def submit_once(context: Context, where: Where, job: RayJob, *, again: bool = False) -> Attempt:
    """Find this task's Ray job or submit it; its ``job_id`` is where it runs.

    A retry finds the job that goes on or has ended well. The next one is submitted when the last has failed, when the
    user has cleared the task (the last is stopped first, and seen to have ended), or when its cluster is another one.

    :param again: in place of a job that another task has submitted: it goes on from what that one left.
    :raises ClusterGone: the cluster has ended.
    :raises RayRefused: the cluster refuses the job or the token.
    :raises RayUnreachable: the dashboard does not answer, though the cluster has not ended.
    :raises LoginNodeUnreachable: no connection.
    :raises SlurmUnreachable: slurmctld does not answer.
    """
    target = where.target
    runs_on = target.job_id or target.address or ""
    stage = job.directory or (task_directory(target.cluster, context) if target.cluster else None)
    names = f"{stage}/{'ray-again' if again else 'ray'}" if stage else ""
    last = stored(context, STORE_KEY)
    cleared = last is not None and last.was_cleared(context)
    attempt = last or _attempt(context, names, 1, runs_on, fresh=not again)
    if last and cleared:
        log.info("the task was cleared: Ray job %s is over, the next one begins", last.key)
        if last.job_id == runs_on:
            await _stop(target, last)
    if last and (cleared or last.over):
        attempt = _attempt(context, names, last.number + 1, runs_on, fresh=cleared)
    while True:
        elsewhere = attempt.job_id != runs_on
        found = await (
            _left_by(target, attempt) if elsewhere else standing(target, attempt.key, attempt.directory)
        )
        if found in (Standing.DONE, Standing.GOES_ON):
            log.info("found Ray job %s: it %s", attempt.key, found.value)
            attempt.save(context, STORE_KEY)
            return attempt
        if found is Standing.UNKNOWN:
            break
        log.info("Ray job %s %s; the next one begins", attempt.key, found.value)
        attempt = _attempt(context, names, attempt.number + 1, runs_on, fresh=attempt.fresh)
    attempt.save(context, STORE_KEY)  # the intent, before anything can be lost
    command = await _place(where, job, attempt)
    async with ray_client(target) as client:
        new = await client.submit(
            attempt.key,
            shlex.join(command),
            runtime_env=job.runtime_env,
            metadata={"llm_bridge": attempt.key},
            **job.resources(),
        )
    log.info("%s Ray job %s", "submitted" if new else "found", attempt.key)
    return attempt


async def _stop(target: RayTarget, attempt: Attempt) -> None:
    try:
        async with ray_client(target) as client:
            ended = await stop_and_wait(client, attempt.key)
    except RayUnreachable:
        if await allocation.ended(target):
            return  # and with it every job on it
        raise
    if not ended:
        raise AirflowException(
            f"the task was cleared, but Ray job {attempt.key} has not ended {STOP_SECONDS:.0f} s after it was told to "
            "stop: look at it on Ray's dashboard; the next try looks again"
        )


async def stop_and_wait(client: RayClient, submission_id: str, seconds: float = STOP_SECONDS) -> bool:
    """Stop a Ray job and look until it has ended; whether it has.

    A job that Ray could never start stays PENDING for ever, whatever it is told; it runs nothing.
    """
    until = time.monotonic() + seconds
    job = await client.job(submission_id)
    if job is None or job["status"] in ENDED:
        return True
    await client.stop(submission_id)
    while time.monotonic() < until:
        job = await client.job(submission_id)
        if job is None or job["status"] in ENDED:
            return True
        await asyncio.sleep(0.5)
    return job["status"] == "PENDING"


async def _place(where: Where, job: RayJob, attempt: Attempt) -> list[str]:
    """Put the job's files on the cluster; the command that runs it."""
    if not where.target.cluster:
        if not job.entrypoint:
            raise ValueError("a program of include/jobs needs a Ray cluster that is a Slurm job of ours")
        return job.entrypoint
    directory, programs = attempt.directory, launchers()
    if job.entrypoint:
        texts, command = {f"jobs/{WRAPPER}": programs[f"jobs/{WRAPPER}"]}, job.entrypoint
    else:
        texts = {"settings.json": json.dumps(job.settings, indent=2, ensure_ascii=False), **programs}
        command = [str(where.python), f"{directory}/jobs/{job.program}", f"{directory}/settings.json"]
    stage = job.result.request(of_ray_job(job), fresh=attempt.fresh) if job.result else None
    async with allocation.slurm_client(where.target.cluster) as slurm:
        begun = await slurm.place(directory, texts, stage)
    for path in begun.get("aside", ()):
        log.info("begins anew: what an earlier attempt made is now %s", path)
    return ["/bin/bash", f"{directory}/jobs/{WRAPPER}", directory, *command]


def of_ray_job(job: RayJob) -> str:
    """A Ray job's fingerprint: which program, with which settings."""
    return fingerprint.of(job.program or json.dumps(job.entrypoint), job.settings)


def _attempt(context: Context, names: str, number: int, runs_on: str, *, fresh: bool) -> Attempt:
    """:param names: of the attempts' directories, up to their number; empty where there are none."""
    ti: Any = context["ti"]
    return Attempt(
        number=number,
        key=job_key(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, number),
        directory=f"{names}-{number}" if names else "",
        clear_number=clear_number(context),
        max_tries=ti.max_tries,
        job_id=runs_on,
        fresh=fresh,
    )
