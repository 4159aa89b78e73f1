"""Why a Slurm job failed, from what its trigger saw and what the cluster knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_bridge.failures.evidence import Evidence, Place, slurm_logs
from llm_bridge.failures.handling import Explained, explain, own_checkpoints
from llm_bridge.slurm.info import JobInfo

if TYPE_CHECKING:
    from airflow.sdk import Context

    from llm_bridge.slurm.job import SlurmJob


def explain_slurm(
    context: Context, operator: Any, event: dict[str, Any], job: SlurmJob | None, *, final: bool = False
) -> Explained:
    """As :func:`~llm_bridge.failures.handling.explain`, from the payload of ``SlurmJobTrigger``.

    :param job: what the operator can submit again; None where the job belongs to another task.
    """
    directory = event["directory"]
    results = [part.result for part in (job, *job.makes) if part.result] if job else []
    outputs = [path for result in results for path in result.outputs]
    saves = own_checkpoints(job.settings, outputs) if job else None
    known = Evidence(
        job_id=event["job_id"],
        gpus=job.resources.nodes * job.resources.gpus_per_node if job else 0,
        trains=saves is not None,
        info=JobInfo(**event["info"]) if event["info"] else None,
        notice=event["notice"],
        reason=event["reason"],
    )
    ray = directory if event["ready_file"] else None
    place = Place(event["cluster"], event["job_id"], directory, slurm_logs(directory), saves, ray)
    return explain(
        context,
        operator,
        known,
        place,
        name=f"Slurm job {event['job_id']}",
        final=final,
        can_continue=job is not None,
        theirs=job is None and event["notice"] != "timeout",
        last_lines=event["last_lines"],
    )
