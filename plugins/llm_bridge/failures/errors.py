"""Exceptions that carry what happened, where, and what to look at next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from llm_bridge.ray import words
from llm_bridge.slurm.states import Phase, state_of

if TYPE_CHECKING:
    from llm_bridge.failures.decision import Decision
    from llm_bridge.failures.diagnosis import Diagnosis
    from llm_bridge.failures.handling import Explained

AGAIN = (
    "a retry, or a clear of this task, submits it again, on a Ray cluster of its own where this one is gone; "
    "it goes on from its newest complete checkpoint"
)


class Explains(AirflowException):
    """Carries the ``diagnosis``, and the ``decision`` that :class:`~llm_bridge.failures.decision.RetryByCause` reads;
    both None where nobody looked for the cause."""

    diagnosis: Diagnosis | None = None
    decision: Decision | None = None

    def __init__(self, text: str, explained: Explained | None) -> None:
        if explained:
            self.diagnosis, self.decision = explained.diagnosis, explained.decision
            text += f"\n{explained.diagnosis.text()}"
        super().__init__(text)


class SlurmJobFailed(Explains):
    """A Slurm job ended without having done its work.

    :param event: the payload of :class:`~llm_bridge.slurm.triggers.SlurmJobTrigger`.
    :param explained: why, and what follows.
    """

    def __init__(self, event: dict[str, Any], explained: Explained | None = None) -> None:
        self.event = event
        super().__init__(_sentence(event), explained)


class SlurmJobCannotSucceed(SlurmJobFailed, AirflowFailException):
    """The job itself said that running it again cannot help, so Airflow does not: bad input, a refused token."""


class RayJobFailed(Explains):
    """A Ray job ended without having done its work, or its cluster did.

    :param event: the payload of :class:`~llm_bridge.ray.triggers.RayJobTrigger`.
    :param explained: why, and what follows.
    :param again: whether the next try of the task brings the job back by itself.
    """

    def __init__(
        self, event: dict[str, Any], explained: Explained | None = None, *, again: bool = False
    ) -> None:
        self.event = event
        super().__init__(_ray_sentence(event, again), explained)


class RayJobCannotSucceed(RayJobFailed, AirflowFailException):
    """The job itself said that running it again cannot help, so Airflow does not."""


class HubUploadFailed(Explains):
    """An upload that ran on the worker itself has failed.

    :param event: ``model_dir``, ``repo_id``, ``host``, ``exit_code`` and ``last_lines``.
    :param explained: why, and what follows.
    """

    def __init__(self, event: dict[str, Any], explained: Explained) -> None:
        self.event = event
        text = f"upload of {event['model_dir']} to {event['repo_id']} from worker {event['host']} failed"
        text += f": exit code {event['exit_code']}{_quoted(event['last_lines'])}"
        super().__init__(text, explained)


class HubUploadCannotSucceed(HubUploadFailed, AirflowFailException):
    """The uploader itself said that running it again cannot help, so Airflow does not: bad input, a refused token."""


def _sentence(event: dict[str, Any]) -> str:
    head = f"Slurm job {event['job_id']} on cluster {event['cluster']!r}"
    log = f"{event['directory']}/output.log"
    if event["notice"] == "timeout":
        what = "was cancelled" if event["cancelled"] else "goes on, but is not waited for any more"
        return f"{head} {what}: the task's time limit had passed. Log on the cluster: {log}"
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
    text += _hang(event)
    return f"{text}{_quoted(event['last_lines'])}\nWhole log on the cluster: {log}"


def _ray_sentence(event: dict[str, Any], again: bool) -> str:
    target, job, outcome = event["target"], event["job"], event["outcome"]
    text = f"Ray job {event['submission_id']} "
    if event["status"] == "ALLOCATION_ENDED" and event["info"]:
        text += f"lost its cluster: {_allocation(event)}"
    elif event["status"] == words.CANNOT_START:
        text += f"cannot start: {event['notice']}"
        again = False
    elif (job or outcome) and event["status"] != "ALLOCATION_ENDED":
        text += f"ended {event['status']}"
        details = {"driver_exit_code": outcome["exit_code"]} if outcome else {}
        details |= {name: job[name] for name in ("error_type", "driver_exit_code") if job and job.get(name)}
        text += f" ({', '.join(f'{name} {value}' for name, value in details.items())})" if details else ""
        meaning = words.of_job(job, outcome)
        text += f": {meaning}" if meaning else ""
    else:
        text += f"cannot be followed any more ({event['status']}): {event['notice']}"
    text += f"\nIt says: {event['reason'].get('reason')}" if event["reason"] else ""
    text += _hang(event)
    # Where there is a log of the driver's, its last lines say more than Ray's account of them.
    if job and job.get("message") and not event["directory"]:
        text += f"\nRay says: {job['message'].strip()[-1500:]}"
    text += _quoted(event["last_lines"])
    if event["directory"]:
        text += f"\nWhole log on the cluster: {event['directory']}/output.log"
        text += f"\nLog of the Ray cluster: {target['directory']}/output.log"
    return text + (f"\nHow: {AGAIN}" if again else "")


def _allocation(event: dict[str, Any]) -> str:
    """What became of the Slurm job that the Ray cluster was."""
    info, target = event["info"], event["target"]
    meaning = state_of(info["state"])
    # One that goes on has begun anew: its first life ended.
    what = meaning.meaning if meaning.phase is Phase.ENDED else "was put back into the queue and starts anew"
    text = f"Slurm job {target['job_id']} on cluster {target['cluster']!r} {what}: {info['state']}"
    text += f" {event['cause']}" if event.get("cause") else ""
    text += f", reason {info['reason']}" if info["reason"] else ""
    return text + (f", on {info['nodes']}" if info["nodes"] else "")


def _hang(event: dict[str, Any]) -> str:
    """What HangWatch has found, if the job was still silent at its end."""
    if not (hang := event.get("hang")):
        return ""
    ended = "; it was ended for that (on_hang: retry)" if hang["ended"] else ""
    stacks = "".join(f"\n  | {line}" for line in hang["stacks"][:20])
    return f"\nIt hung: no output and no new step for {hang['for']}{ended}{stacks}"


def _quoted(lines: list[str]) -> str:
    return "\nLast lines:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""
