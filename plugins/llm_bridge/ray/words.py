"""What Ray's error types and a driver's exit code mean, for people."""

from __future__ import annotations

import signal
from typing import Any

# Our status of a job that has never run, and never would; Ray has none for that.
CANNOT_START = "CANNOT_START"
# ray/dashboard/modules/job/common.py: JobErrorType
ERROR_TYPES = {
    "RUNTIME_ENV_SETUP_FAILURE": "it never started: its runtime_env could not be set up on the node (a package or "
    "archive that is not found, or no way to the internet)",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "it never started: Ray waited for free resources, or for its runtime_env, as "
    "long as RAY_JOB_START_TIMEOUT_SECONDS of the cluster allows",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": "it never started: Ray could not start the process that runs it",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "it never started: the node that it has to run on is not there (its label "
    "selector matches no node, or the node is gone)",
    "JOB_SUPERVISOR_ACTOR_DIED": "Ray's process that ran it died with its node, or was killed (often for memory)",
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE": "Ray lost sight of the process that ran it",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": "its command could not be started",
    "JOB_ENTRYPOINT_COMMAND_ERROR": "its command ended with an error",
}
# bash(1), EXIT STATUS
SHELLS = {126: "its command may not be executed", 127: "its command was not found on the node"}
SIGNALS = {
    signal.SIGKILL: "it was killed outright, most often because memory ran out",
    signal.SIGTERM: "it was told to end",
    signal.SIGSEGV: "it crashed in native code",
    signal.SIGABRT: "it gave up in native code",
    signal.SIGBUS: "it crashed in native code, most often because /dev/shm or a disk is full",
}


def of_exit_code(code: int | None) -> str:
    """What an exit code says beyond "failed"; empty where that is nothing.

    :param code: of the driver: negative, or 128 and the number, for a signal.
    """
    if not code:
        return ""
    number = -code if code < 0 else code - 128
    if number in SIGNALS:
        return SIGNALS[signal.Signals(number)]
    return SHELLS.get(code, "")


def of_job(job: dict[str, Any] | None, outcome: dict[str, Any] | None) -> str:
    """What became of a Ray job, in one clause; empty where its exit code alone tells all.

    :param job: what Ray says of it.
    :param outcome: what its wrapper wrote as it ended (``include/jobs/ray_job.sh``).
    """
    code = outcome["exit_code"] if outcome else (job or {}).get("driver_exit_code")
    error_type = (job or {}).get("error_type")
    return of_exit_code(code) or (ERROR_TYPES.get(error_type, "") if error_type else "")
