"""Define the exceptions of failed jobs. Each message has the end of the job, its place, its cause and the next step."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, ParamSpec, TypeVar

from airflow.sdk.exceptions import AirflowFailException

from llm_bridge.diagnosis.explain import FailureReport
from llm_bridge.diagnosis.report import Diagnosis
from llm_bridge.diagnosis.retry import Decision
from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.retry_policy import DiagnosisRetryPolicy
from llm_bridge.ray.errors import describe_end
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.events import EndReason, HangReport, SlurmJobEvent
from llm_bridge.slurm.status import Phase

log = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

RESUBMITS = (
    "a retry or a clear of this task submits the job again (on a new Ray cluster if this one has ended); it resumes "
    "from its newest complete checkpoint"
)
# Lines of a stack dump in an error message.
MAX_STACK_LINES = 20


class LoggedConfigError(ConfigError, SystemExit):
    """A :class:`~llm_bridge.exceptions.ConfigError` whose lines have been logged.

    Airflow logs the traceback of every exception but SystemExit, which takes the same way otherwise: retry policy,
    callbacks with this exception, listeners.
    """

    code = 1


def logs_config_errors(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate an operator's method: a wrong setting is logged line by line, for people, without a traceback."""

    @functools.wraps(method)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except LoggedConfigError:
            raise
        except ConfigError as error:
            for line in error.lines:
                log.error("%s", line)
            raise LoggedConfigError(str(error), error.lines) from None

    return call


class DiagnosedError(Exception, SystemExit):
    """Error with a diagnosis, for :func:`fail`.

    Airflow logs no traceback of it, as of :class:`LoggedConfigError`: it is no AirflowException, whose traceback is
    logged before anything else is looked at (``_run_task_and_map_outcome`` in Airflow's task_runner.py).

    Attributes:
        diagnosis: Cause of the failure; None if there was no diagnosis.
        decision: Next step, which ``DiagnosisRetryPolicy`` reads; None if there was no diagnosis.
    """

    code = 1
    diagnosis: Diagnosis | None = None
    decision: Decision | None = None

    def __init__(self, text: str, report: FailureReport | None) -> None:
        if report:
            self.diagnosis, self.decision = report.diagnosis, report.decision
            text += f"\n{report.diagnosis.text()}"
        super().__init__(text)


def fail(error: DiagnosedError, *, permanent: bool, policy: object) -> NoReturn:
    """Log an error line by line, for people, and raise it.

    Args:
        error: The error.
        permanent: A retry cannot help.
        policy: The task's retry policy. :class:`~llm_bridge.operators.retry_policy.DiagnosisRetryPolicy` follows the
            error's decision. Another one does not, so with it the error is an AirflowFailException, too, which Airflow
            never retries, and logs with its traceback.

    Raises:
        DiagnosedError: The error.
    """
    for line in str(error).splitlines():
        log.error("%s", line)
    if permanent and not isinstance(policy, DiagnosisRetryPolicy):
        kind = type(error)
        error.__class__ = type(kind.__name__, (kind, AirflowFailException), {"__doc__": kind.__doc__})
    raise error


class SlurmJobFailed(DiagnosedError):
    """A Slurm job failed.

    Args:
        event: End of the job.
        report: Cause and next step.
    """

    def __init__(self, event: SlurmJobEvent, report: FailureReport | None = None) -> None:
        self.event = event
        super().__init__(_describe_slurm(event), report)


class SlurmJobPermanentError(SlurmJobFailed):
    """The job reported that a retry cannot help (bad input, a refused token), so Airflow does not retry the task."""


class RayJobFailed(DiagnosedError):
    """A Ray job or its cluster failed.

    Args:
        event: End of the job.
        report: Cause and next step.
        resubmits: True if the next try of the task submits the job again.
    """

    def __init__(
        self, event: RayJobEvent, report: FailureReport | None = None, *, resubmits: bool = False
    ) -> None:
        self.event = event
        super().__init__(_describe_ray(event, resubmits), report)


class RayJobPermanentError(RayJobFailed):
    """The job reported that a retry cannot help, so Airflow does not retry the task."""


@dataclass(frozen=True)
class HubUploadEvent:
    """End of an upload that ran on the worker.

    Attributes:
        model_dir: Folder that was uploaded.
        repo_id: ``OWNER/NAME`` on the Hub.
        host: Name of the worker's host.
        exit_code: Exit code of the uploader.
        last_lines: Last lines of its output.
    """

    model_dir: str
    repo_id: str
    host: str
    exit_code: int
    last_lines: tuple[str, ...] = ()


class HubUploadFailed(DiagnosedError):
    """An upload that ran on the worker failed.

    Args:
        event: End of the upload.
        report: Cause and next step.
    """

    def __init__(self, event: HubUploadEvent, report: FailureReport) -> None:
        self.event = event
        text = f"upload of {event.model_dir} to {event.repo_id} from worker {event.host} failed"
        super().__init__(f"{text}: exit code {event.exit_code}{_quoted(event.last_lines)}", report)


class HubUploadPermanentError(HubUploadFailed):
    """The uploader reported that a retry cannot help (bad input, a refused token), so Airflow does not retry."""


def _describe_slurm(event: SlurmJobEvent) -> str:
    head = f"Slurm job {event.job_id} on cluster {event.cluster!r}"
    log = f"{event.directory}/{attempt_dir.OUTPUT}"
    if event.end is EndReason.TIMEOUT:
        what = "was cancelled" if event.cancelled else "continues, but this task stopped waiting for it"
        return f"{head} {what}: the task's time limit has passed. Log on the cluster: {log}"
    info = event.info
    if info is None:
        return f"{head} can no longer be followed: {event.notice}. Log on the cluster: {log}"
    parts = [f"{head} {info.meaning.meaning}: {info.state}"]
    if info.exit_code or info.signal:
        parts.append(f"exit code {info.exit_code}, signal {info.signal}")
    if info.reason:
        parts.append(f"reason {info.reason}")
    if info.nodes:
        parts.append(f"on {info.nodes}")
    text = ", ".join(parts) + _own_reason(event) + _describe_hang(event.hang)
    return f"{text}{_quoted(event.last_lines)}\nComplete log on the cluster: {log}"


def _describe_ray(event: RayJobEvent, resubmits: bool) -> str:
    text = f"Ray job {event.submission_id} "
    if event.lost_cluster and event.info:
        text += f"lost its cluster: {_describe_allocation(event)}"
    elif event.end is RayEndReason.CANNOT_START:
        text += f"cannot start: {event.notice}"
        resubmits = False
    elif (event.job or event.outcome) and not event.lost_cluster:
        text += f"ended {event.end.value}{_ray_details(event)}"
    else:
        text += f"can no longer be followed ({event.end.value}): {event.notice}"
    text += _own_reason(event) + _describe_hang(event.hang)
    # If there is a log file of the driver, its last lines are more detailed than Ray's message.
    if event.job and event.job.message and not event.directory:
        text += f"\nRay's message: {event.job.message.strip()[-1500:]}"
    text += _quoted(event.last_lines)
    if event.directory:
        text += f"\nComplete log on the cluster: {event.directory}/{attempt_dir.OUTPUT}"
        text += f"\nLog of the Ray cluster: {event.target.directory}/{attempt_dir.OUTPUT}"
    return text + (f"\nNext: {RESUBMITS}" if resubmits else "")


def _ray_details(event: RayJobEvent) -> str:
    details: dict[str, Any] = {}
    if event.outcome:
        details["driver_exit_code"] = event.outcome.exit_code
    if event.job and event.job.error_type:
        details["error_type"] = event.job.error_type
    if event.job and event.job.driver_exit_code:
        details["driver_exit_code"] = event.job.driver_exit_code
    text = f" ({', '.join(f'{name} {value}' for name, value in details.items())})" if details else ""
    meaning = describe_end(event.job, event.outcome)
    return text + (f": {meaning}" if meaning else "")


def _describe_allocation(event: RayJobEvent) -> str:
    """Return how the Slurm job of the Ray cluster ended."""
    info, target = event.info, event.target
    assert info
    # A job that has not ended was requeued, which ends the Ray cluster as well.
    ended = info.phase is Phase.ENDED
    what = info.meaning.meaning if ended else "was requeued and starts from its beginning"
    text = f"Slurm job {target.job_id} on cluster {target.cluster!r} {what}: {info.state}"
    text += f" {event.cause}" if event.cause else ""
    text += f", reason {info.reason}" if info.reason else ""
    return text + (f", on {info.nodes}" if info.nodes else "")


def _own_reason(event: SlurmJobEvent | RayJobEvent) -> str:
    return f"\nThe job's own reason: {event.reason.reason}" if event.reason and event.reason.reason else ""


def _describe_hang(hang: HangReport | None) -> str:
    """Return the hang monitor's report of a job that hung at its end."""
    if not hang:
        return ""
    ended = "; llm-bridge ended it for that reason (on_hang: retry)" if hang.ended else ""
    stacks = "".join(f"\n  | {line}" for line in hang.stacks[:MAX_STACK_LINES])
    return f"\nThe job hung: no output and no new step for {hang.duration}{ended}{stacks}"


def _quoted(lines: Sequence[str]) -> str:
    return "\nLast lines:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""
