"""Explain the failure of a Ray job from its own logs first, then from those of its cluster's Slurm job."""

from __future__ import annotations

from datetime import timedelta

from llm_bridge.diagnosis.evidence import Evidence, LogLocation, slurm_logs
from llm_bridge.diagnosis.explain import FailureReport, explain, own_checkpoints
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.ray.spec import RayJob
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.task_state import TaskState

# Ends after which the job may still run, because its state could not be read.
MAY_STILL_RUN = {RayEndReason.UNREACHABLE, RayEndReason.REFUSED}


async def explain_ray(
    task: TaskState,
    event: RayJobEvent,
    job: RayJob | None,
    cluster: SlurmJob | None,
    *,
    retry_delay: timedelta,
    final: bool,
) -> FailureReport:
    """Diagnose a failed Ray job and decide the action, as :func:`~llm_bridge.diagnosis.explain.explain`.

    Args:
        task: Task that waited for the job.
        event: End of the job.
        job: Job that the task can submit again; None if it cannot.
        cluster: Slurm job of the Ray cluster that the task can start; None if it cannot.
        retry_delay: The task's ``retry_delay``.
        final: True if the job reported that a retry cannot help.
    """
    target, lost = event.target, event.lost_cluster
    outcome = None if lost else event.outcome
    saves = own_checkpoints(job.settings, job.output.outputs if job.output else ()) if job else None
    exit_code = (event.job.driver_exit_code if event.job else None) or (
        outcome.exit_code if outcome else None
    )
    partial = Evidence(
        job_id=target.job_id or "",
        gpus=cluster.resources.nodes * cluster.resources.gpus_per_node if cluster else 0,
        trains=saves is not None,
        # The state of the allocation is no evidence for a job that failed by itself.
        info=event.info if lost else None,
        timed_out=event.end is RayEndReason.TIMEOUT,
        hung=event.hang is not None and event.hang.ended,
        forgotten=event.forgotten,
        notice=event.notice,
        reason=event.reason,
        is_ray=True,
        cluster_ended=lost,
        ray_error_type=event.job.error_type if event.job else None,
        ray_message=(event.job.message if event.job else None) or "",
        driver_exit_code=exit_code,
    )
    own_logs = slurm_logs(event.directory)[:1] if event.directory else ()
    cluster_logs = slurm_logs(target.directory) if target.directory else ()
    location = LogLocation(
        cluster=target.cluster or "",
        job_id=target.job_id if lost and target.job_id else "",
        directory=event.directory or target.directory or "",
        # If the cluster was lost its logs have the cause, and the driver's only the consequence.
        logs=(*cluster_logs, *own_logs) if lost else (*own_logs, *cluster_logs),
        checkpoints=saves,
        ray_cluster=target.directory,
    )
    return await explain(
        task,
        partial,
        location,
        name=event.submission_id,
        retry_delay=retry_delay,
        final=final,
        can_continue=job is not None,
        foreign_job=job is None and event.end not in MAY_STILL_RUN,
        last_lines=event.last_lines or partial.ray_message.splitlines(),
    )
