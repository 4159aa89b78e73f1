"""Exceptions that more than one layer distinguishes. None of them needs Airflow."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(Exception):
    """A cluster file, a recipe, a form field or a job specification is wrong.

    A retry cannot help: :class:`~llm_bridge.operators.retry_policy.DiagnosisRetryPolicy` fails the task at once.

    Args:
        message: Text of the error.
        lines: The same for a log, one error a line, with its key or field first; by default the message's own lines.
    """

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines) or [line.strip().removeprefix("- ") for line in message.splitlines()]


class NoConnection(ConfigError):
    """Airflow has no connection to the cluster."""


class HostKeyNotTrusted(ConfigError):
    """The login node presented a host key that is not the trusted one."""


class JobRefused(ConfigError):
    """Slurm refuses a job for good.

    Args:
        cause: What Slurm printed, and what was found in addition.
        job: Name of the job.
        cluster: Name of the cluster file.
    """

    def __init__(self, cause: str, job: str, cluster: str) -> None:
        self.cause = cause
        super().__init__(
            f"Slurm on cluster {cluster!r} refuses the job {job!r}: {cause}. Check include/clusters/{cluster}.yaml and "
            "the recipe's nodes, gpus_per_node and time_limit; nothing was submitted."
        )


class WorkspaceNotWritable(ConfigError):
    """The workspace is full, over its quota, or read-only."""


class ServiceUnavailable(ConnectionError):
    """A service does not answer now. This has no meaning for any job: the request is retried."""


class ClusterUnavailable(ServiceUnavailable):
    """The login node or slurmctld does not answer now."""


class LoginNodeUnreachable(ClusterUnavailable):
    """The login node did not answer, or the connection broke."""


class LoginShellFailed(LoginNodeUnreachable):
    """The login shell, or its start files, ran no command."""


class LoginDenied(LoginNodeUnreachable):
    """The login node refused user or key.

    In a run that has worked before, an outage of its directory service is more likely than a changed key, so it is
    retried like any other.
    """


class SlurmUnavailable(ClusterUnavailable):
    """slurmctld did not answer. If it accepted a job nevertheless, the next try finds the job."""


class NotAcceptedYet(SlurmUnavailable):
    """slurmctld answered and does not accept the job now (a submit limit, a drained partition); it will later."""


class EarlierAttemptRuns(NotAcceptedYet):
    """Processes of an earlier attempt still run, or may, although Slurm has ended or is ending its job.

    Nothing was submitted.
    """


class RateLimitExceeded(SlurmUnavailable):
    """The site's rate limit for Slurm commands (``rpc_budget``) allows no further one for a while.

    Args:
        seconds: Time until it allows the next command.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the site's rate limit for Slurm commands (rpc_budget) allows none for {seconds:.0f} s"
        )
        self.seconds = seconds


class RayUnavailable(ServiceUnavailable):
    """The Ray dashboard did not answer."""


class RayRequestError(RuntimeError):
    """The Ray dashboard refused a request; a retry cannot help."""


class RayClusterEnded(Exception):
    """The Slurm job of the Ray cluster has ended, and with it every Ray job on that cluster."""


class SubmissionUnread(RuntimeError):
    """sbatch succeeded, but neither its output nor Slurm identifies the job that it made. A retry looks by its name."""
