"""Why a Ray job failed: its own logs first, then those of the Slurm job that its cluster is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_bridge.failures.evidence import Evidence, Place, slurm_logs
from llm_bridge.failures.handling import Explained, explain, own_checkpoints
from llm_bridge.ray.client import RayTarget
from llm_bridge.slurm.info import JobInfo

if TYPE_CHECKING:
    from airflow.sdk import Context

    from llm_bridge.ray.job import RayJob
    from llm_bridge.slurm.job import SlurmJob

# The job may be well: nobody could ask.
MAY_GO_ON = {"UNREACHABLE", "REFUSED"}


def explain_ray(
    context: Context,
    operator: Any,
    event: dict[str, Any],
    job: RayJob | None,
    cluster: SlurmJob | None,
    *,
    final: bool,
) -> Explained:
    """As :func:`~llm_bridge.failures.handling.explain`, from the payload of ``RayJobTrigger``.

    :param job: what the operator can submit again, and :param cluster: the Ray cluster that it can bring up; None for
        both where it cannot.
    """
    target, ray = RayTarget(**event["target"]), event["job"] or {}
    lost = event["status"] == "ALLOCATION_ENDED"
    outcome = {} if lost else event["outcome"] or {}
    saves = own_checkpoints(job.settings, job.result.outputs if job.result else ()) if job else None
    known = Evidence(
        job_id=target.job_id or "",
        gpus=cluster.resources.nodes * cluster.resources.gpus_per_node if cluster else 0,
        trains=saves is not None,
        # What has become of the allocation says nothing about a job that failed by itself.
        info=JobInfo(**event["info"]) if event["info"] and lost else None,
        notice=event["notice"] or "",
        reason=event["reason"],
        ray={
            "status": event["status"],
            "error_type": ray.get("error_type"),
            "driver_exit_code": ray.get("driver_exit_code") or outcome.get("exit_code"),
            "message": ray.get("message"),
        },
    )
    directory = event["directory"]
    own_logs = (f"{directory}/output.log",) if directory else ()
    cluster_logs = slurm_logs(target.directory) if target.directory else ()
    place = Place(
        target.cluster or "",
        target.job_id if lost and target.job_id else "",
        directory or target.directory or "",
        # A cluster that was lost tells more than the driver, which only notices.
        (*cluster_logs, *own_logs) if lost else (*own_logs, *cluster_logs),
        saves,
        target.directory,
    )
    lines = event["last_lines"] or str(ray.get("message") or "").splitlines()
    name = event["submission_id"]
    return explain(
        context,
        operator,
        known,
        place,
        name=name,
        final=final,
        can_continue=job is not None,
        theirs=job is None and event["status"] not in MAY_GO_ON,
        last_lines=lines,
    )
