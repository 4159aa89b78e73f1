"""The one table of Slurm's job states."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Phase(Enum):
    """What a state means for somebody who waits."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class State(NamedTuple):
    """One state: its phase, whether the work was done, and the sentence for people."""

    phase: Phase
    good: bool
    meaning: str


# squeue(1) and sacct(1), JOB STATE CODES. A state that is not in here is UNKNOWN, which is never read as ended.
STATES: dict[str, State] = {
    "PENDING": State(Phase.WAITING, False, "waits in the queue"),
    "CONFIGURING": State(Phase.WAITING, False, "its nodes are being made ready"),
    "REQUEUED": State(Phase.WAITING, False, "was put back into the queue"),
    "REQUEUE_HOLD": State(Phase.WAITING, False, "was put back into the queue and is held"),
    "REQUEUE_FED": State(Phase.WAITING, False, "was put back into the queue of another cluster"),
    "SPECIAL_EXIT": State(Phase.WAITING, False, "was put back into the queue in state special exit"),
    "RESV_DEL_HOLD": State(Phase.WAITING, False, "is held because its reservation was deleted"),
    "RUNNING": State(Phase.RUNNING, False, "runs"),
    "COMPLETING": State(Phase.RUNNING, False, "is ending"),
    "STAGE_OUT": State(Phase.RUNNING, False, "copies its files out"),
    "SIGNALING": State(Phase.RUNNING, False, "is being signalled"),
    "RESIZING": State(Phase.RUNNING, False, "changes its size"),
    "SUSPENDED": State(Phase.RUNNING, False, "is suspended"),
    "STOPPED": State(Phase.RUNNING, False, "is stopped"),
    "COMPLETED": State(Phase.ENDED, True, "ended well"),
    "FAILED": State(Phase.ENDED, False, "ended with an error"),
    "CANCELLED": State(Phase.ENDED, False, "was cancelled"),
    "TIMEOUT": State(Phase.ENDED, False, "ran into its time limit"),
    "DEADLINE": State(Phase.ENDED, False, "could not end before its deadline"),
    "OUT_OF_MEMORY": State(Phase.ENDED, False, "used more memory than it asked for"),
    "NODE_FAIL": State(Phase.ENDED, False, "lost a node"),
    "BOOT_FAIL": State(Phase.ENDED, False, "its nodes did not boot"),
    "PREEMPTED": State(Phase.ENDED, False, "was preempted by a job of higher priority"),
    "REVOKED": State(Phase.ENDED, False, "was taken over by another cluster"),
}

# How the notice begins that Slurm has no state for a job.
FORGOTTEN = "Slurm has lost"

_UNKNOWN = State(Phase.UNKNOWN, False, "is in a state that llm-bridge does not know")


def state_of(name: str) -> State:
    """Look ``name`` up; sacct's ``CANCELLED by 1001`` and a trailing ``+`` are understood."""
    return STATES.get(name.split(" ")[0].rstrip("+").upper(), _UNKNOWN)
