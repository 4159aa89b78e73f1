"""Explain the failure of a Slurm job from its event and from evidence on the cluster."""

from __future__ import annotations

from datetime import timedelta

from llm_bridge.diagnosis.evidence import Evidence, LogLocation, slurm_logs
from llm_bridge.diagnosis.explain import FailureReport, explain, own_checkpoints
from llm_bridge.slurm.events import EndReason, SlurmJobEvent
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.task_state import TaskState


async def explain_slurm(
    task: TaskState,
    event: SlurmJobEvent,
    job: SlurmJob | None,
    *,
    retry_delay: timedelta,
    final: bool = False,
) -> FailureReport:
    """Diagnose a failed Slurm job and decide the action, as :func:`~llm_bridge.diagnosis.explain.explain`.

    Args:
        task: Task that waited for the job.
        event: End of the job.
        job: Job that the task can submit again; None if the job belongs to another task.
        retry_delay: The task's ``retry_delay``.
        final: True if the job reported that a retry cannot help.
    """
    parts = [part.output for part in (job, *job.produces) if part.output] if job else []
    saves = own_checkpoints(job.settings, [path for part in parts for path in part.outputs]) if job else None
    partial = Evidence(
        job_id=event.job_id,
        gpus=job.resources.nodes * job.resources.gpus_per_node if job else 0,
        trains=saves is not None,
        info=event.info,
        timed_out=event.end is EndReason.TIMEOUT,
        hung=event.end is EndReason.HUNG,
        forgotten=event.end is EndReason.FORGOTTEN,
        notice=event.notice,
        reason=event.reason,
    )
    location = LogLocation(
        cluster=event.cluster,
        job_id=event.job_id,
        directory=event.directory,
        logs=slurm_logs(event.directory),
        checkpoints=saves,
        ray_cluster=event.directory if event.ready_file else None,
    )
    return await explain(
        task,
        partial,
        location,
        name=f"Slurm job {event.job_id}",
        retry_delay=retry_delay,
        final=final,
        can_continue=job is not None,
        foreign_job=job is None and event.end is not EndReason.TIMEOUT,
        last_lines=event.last_lines,
    )
