"""Explain Ray's error types and a driver's exit code to users."""

from __future__ import annotations

import signal

from llm_bridge.ray.client import RayJobDetails
from llm_bridge.remote.attempt_dir import Outcome

# ray/dashboard/modules/job/common.py: JobErrorType
ERROR_TYPES = {
    "RUNTIME_ENV_SETUP_FAILURE": "it never started: its runtime_env could not be set up on the node (a package or "
    "archive was not found, or the node has no internet access)",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "it never started: waiting for free resources or for its runtime_env timed "
    "out (RAY_JOB_START_TIMEOUT_SECONDS of the cluster)",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": "it never started: Ray could not start its supervisor process",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "it never started: the node that it must run on does not exist (its label "
    "selector matches no node, or the node has left the cluster)",
    "JOB_SUPERVISOR_ACTOR_DIED": "its supervisor process died with its node, or was killed (often for lack of memory)",
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE": "Ray lost contact with its supervisor process",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": "its command could not be started",
    "JOB_ENTRYPOINT_COMMAND_ERROR": "its command ended with an error",
}
# bash(1), EXIT STATUS
SHELL_EXIT_CODES = {126: "its command is not executable", 127: "its command was not found on the node"}
SIGNALS = {
    signal.SIGKILL: "it was killed (SIGKILL), most often because memory ran out",
    signal.SIGTERM: "it was terminated (SIGTERM)",
    signal.SIGSEGV: "it crashed in native code (SIGSEGV)",
    signal.SIGABRT: "it aborted in native code (SIGABRT)",
    signal.SIGBUS: "it crashed in native code (SIGBUS), most often because /dev/shm or a disk is full",
}


def describe_exit_code(code: int | None) -> str:
    """Return the meaning of an exit code as a clause; empty if it means no more than "failed".

    Args:
        code: Exit code of the driver; for a signal the negative number, or 128 plus the number.
    """
    if not code:
        return ""
    number = -code if code < 0 else code - 128
    if number in SIGNALS:
        return SIGNALS[signal.Signals(number)]
    return SHELL_EXIT_CODES.get(code, "")


def describe_end(job: RayJobDetails | None, outcome: Outcome | None) -> str:
    """Return how a Ray job ended as one clause; empty if there is nothing to add to its exit code.

    Args:
        job: Details that Ray reports.
        outcome: Outcome file of its wrapper (``remote/templates/ray_job.sh.j2``), which takes precedence.
    """
    code = outcome.exit_code if outcome else job.driver_exit_code if job else None
    error_type = job.error_type if job else None
    return describe_exit_code(code) or (ERROR_TYPES.get(error_type, "") if error_type else "")
