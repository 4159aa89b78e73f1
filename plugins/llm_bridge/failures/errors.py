"""Exceptions that carry what happened, where, and what to look at next."""

from __future__ import annotations

from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from llm_bridge.slurm.states import state_of


class SlurmJobFailed(AirflowException):
    """A Slurm job ended without having done its work.

    :param event: the payload of :class:`~llm_bridge.slurm.triggers.SlurmJobTrigger`.
    """

    def __init__(self, event: dict[str, Any]) -> None:
        self.event = event
        super().__init__(_sentence(event))


class SlurmJobCannotSucceed(SlurmJobFailed, AirflowFailException):
    """The job itself said that running it again cannot help, so Airflow does not: bad input, a refused token."""


class RayJobFailed(AirflowException):
    """A Ray job ended without having done its work, or its cluster did.

    :param event: the payload of :class:`~llm_bridge.ray.triggers.RayJobTrigger`.
    :param target: where the job ran, as :class:`~llm_bridge.ray.client.RayTarget`'s fields.
    """

    def __init__(self, event: dict[str, Any], target: dict[str, Any]) -> None:
        self.event = event
        super().__init__(_ray_sentence(event, target))


def _sentence(event: dict[str, Any]) -> str:
    head = f"Slurm job {event['job_id']} on cluster {event['cluster']!r}"
    log = f"{event['directory']}/output.log"
    if event["notice"] == "timeout":
        return f"{head} was cancelled: the task's time limit (execution_timeout) had passed. Log on the cluster: {log}"
    info = event["info"]
    if info is None:
        return f"{head} cannot be followed any more: {event['notice']}. Log on the cluster: {log}"
    parts = [f"{head} {state_of(info['state']).meaning}: {info['state']}"]
    if info["exit_code"] or info["signal"]:
        parts.append(f"exit code {info['exit_code']}, signal {info['signal']}")
    if info["reason"]:
        parts.append(f"reason {info['reason']}")
    if info["nodes"]:
        parts.append(f"on {info['nodes']}")
    text = ", ".join(parts)
    if event["reason"]:
        text += f"\nIt says: {event['reason'].get('reason')}"
    return f"{text}{_quoted(event['last_lines'])}\nWhole log on the cluster: {log}"


def _ray_sentence(event: dict[str, Any], target: dict[str, Any]) -> str:
    text = f"Ray job {event['submission_id']} "
    job = event["job"]
    if event["status"] == "ALLOCATION_ENDED":
        info = event["info"]
        text += f"lost its cluster: Slurm job {target['job_id']} on cluster {target['cluster']!r} "
        text += f"{state_of(info['state']).meaning}: {info['state']}" if info else event["notice"]
        if info and info["nodes"]:
            text += f", on {info['nodes']}"
        if event["reason"]:
            text += f"\nIt says: {event['reason'].get('reason')}"
        text += f"\nLog of the Ray cluster: {target['directory']}/output.log"
    elif job:
        text += f"ended {event['status']}"
        details = [
            f"{name} {job[name]}" for name in ("error_type", "driver_exit_code") if job.get(name) is not None
        ]
        text += f" ({', '.join(details)})" if details else ""
        text += f"\nIt says: {event['reason'].get('reason')}" if event["reason"] else ""
        text += f"\nRay says: {job['message'].strip()[-1500:]}" if job.get("message") else ""
    else:
        text += f"cannot be followed any more ({event['status']}): {event['notice']}"
    return text + _quoted(event["last_lines"])


def _quoted(lines: list[str]) -> str:
    return "\nLast lines:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""
