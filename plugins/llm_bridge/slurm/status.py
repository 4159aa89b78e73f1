"""Parse the state of a job: the only table of Slurm's job states, and the formats of its commands."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

from llm_bridge.remote.attempt_dir import MAX_JOB_ID, Outcome, Started


class Phase(Enum):
    """Phase of a job's life; several states of Slurm map to one phase."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class State(NamedTuple):
    """Meaning of one state.

    Attributes:
        phase: Its phase.
        good: True if the job has completed its work.
        meaning: Predicate for messages: "Slurm job 7 ..." precedes it.
    """

    phase: Phase
    good: bool
    meaning: str


UNLISTED = "UNLISTED"
COMPLETING = "COMPLETING"
# squeue(1) and sacct(1), JOB STATE CODES. A state that is not in this table is UNKNOWN, which never counts as ended.
STATES: dict[str, State] = {
    "PENDING": State(Phase.WAITING, False, "waits in the queue"),
    "CONFIGURING": State(Phase.WAITING, False, "waits until its nodes are configured"),
    "REQUEUED": State(Phase.WAITING, False, "was put back into the queue"),
    "REQUEUE_HOLD": State(Phase.WAITING, False, "was put back into the queue and is held"),
    "REQUEUE_FED": State(Phase.WAITING, False, "was put back into the queue of another cluster"),
    "EXPEDITING": State(Phase.WAITING, False, "may be put back into the queue at once"),
    "SPECIAL_EXIT": State(Phase.WAITING, False, "was put back into the queue in state special exit"),
    "RESV_DEL_HOLD": State(Phase.WAITING, False, "is held because its reservation was deleted"),
    "RUNNING": State(Phase.RUNNING, False, "runs"),
    COMPLETING: State(Phase.RUNNING, False, "is ending"),
    "STAGE_OUT": State(Phase.RUNNING, False, "copies its files out"),
    "SIGNALING": State(Phase.RUNNING, False, "is being signalled"),
    "RESIZING": State(Phase.RUNNING, False, "changes its size"),
    "SUSPENDED": State(Phase.RUNNING, False, "is suspended"),
    "STOPPED": State(Phase.RUNNING, False, "is stopped"),
    "COMPLETED": State(Phase.ENDED, True, "ended successfully"),
    "FAILED": State(Phase.ENDED, False, "ended with an error"),
    "CANCELLED": State(Phase.ENDED, False, "was cancelled"),
    "TIMEOUT": State(Phase.ENDED, False, "ran into its time limit"),
    "DEADLINE": State(Phase.ENDED, False, "could not end before its deadline"),
    "OUT_OF_MEMORY": State(Phase.ENDED, False, "used more memory than it asked for"),
    "NODE_FAIL": State(Phase.ENDED, False, "lost a node"),
    "BOOT_FAIL": State(Phase.ENDED, False, "ended because its nodes did not boot"),
    "PREEMPTED": State(Phase.ENDED, False, "was preempted by a job of higher priority"),
    "REVOKED": State(Phase.ENDED, False, "was taken over by another cluster"),
    # Not a state of Slurm: SlurmClient.find returns it for a job that slurmctld does not list and that has not ended
    # for accounting.
    UNLISTED: State(Phase.UNKNOWN, False, "is unknown to slurmctld, but has not ended for accounting"),
}

_UNKNOWN = State(Phase.UNKNOWN, False, "is in a state unknown to llm-bridge")


def state_of(name: str) -> State:
    """Return the meaning of a state as Slurm prints it, such as ``FAILED``, ``CANCELLED by 1001`` or ``CANCELLED+``."""
    return STATES.get(name.split(" ")[0].rstrip("+").upper(), _UNKNOWN)


# A job id. Slurm 22.05's commands refuse "1,x", "1,0" and numbers from 2**31 on, with all other ids of the same call.
_JOB_ID = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)

SQUEUE_FORMAT = (
    "JobID:|,State:|,Reason:|,NodeList:|,exit_code:|,"
    "SubmitTime:|,StartTime:|,EndTime:|,RestartCnt:|,WorkDir:|,PendingTime:|"
)


def is_job_id(text: object) -> bool:
    """Return true if Slurm's commands accept a value as a job id; one invalid id makes them refuse the whole call."""
    return isinstance(text, str) and _JOB_ID.fullmatch(text) is not None and int(text) <= MAX_JOB_ID


@dataclass(frozen=True)
class JobInfo:
    """State of one job in Slurm. Times are epoch seconds, 0 if Slurm has none.

    Attributes:
        job_id: Its id.
        state: Its state, as Slurm prints it.
        reason: Slurm's reason for the state; empty for none.
        nodes: Slurm's node list.
        exit_code: Exit code of the batch script.
        signal: Signal that ended the batch script; 0 for none.
        submitted: Time of its submission.
        started: Time of its start.
        ended: Time of its end; while it runs, the time at which its time limit ends it.
        restarts: Number of times that Slurm has restarted it.
        directory: Its working directory, which is its attempt's directory; empty if unknown. After a crash, slurmctld
            may have lost a job and given its id to another one, which has another directory.
        waited: Seconds in the queue so far, or until its start, by slurmctld's clock; 0 if unknown.
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: int = 0
    signal: int = 0
    submitted: float = 0
    started: float = 0
    ended: float = 0
    restarts: int = 0
    directory: str = ""
    waited: float = 0

    def belongs_to(self, directory: str) -> bool:
        """Return true if this may be the job of the attempt in ``directory``."""
        return self.directory in ("", directory)

    @property
    def meaning(self) -> State:
        """Meaning of its state."""
        return state_of(self.state)

    @property
    def phase(self) -> Phase:
        """Phase of its state."""
        return self.meaning.phase

    @property
    def is_completing(self) -> bool:
        """True while Slurm ends the job.

        It ends the processes, for up to KillWait, and runs the site's epilog, which may take minutes. Slurm may run the
        job again after that, but not if it was cancelled.
        """
        return self.state == COMPLETING

    @property
    def expected_wait(self) -> float | None:
        """Seconds between submission and Slurm's estimate of the start of a pending job; None without an estimate."""
        if self.phase is not Phase.WAITING or not self.started or not self.submitted:
            return None
        return max(0.0, self.started - self.submitted)

    @property
    def queue_seconds(self) -> float:
        """Seconds between submission and start; 0 before the start, and without the time of the submission."""
        return max(0.0, self.started - self.submitted) if self.started and self.submitted else 0.0

    @property
    def run_seconds(self) -> float:
        """Seconds between start and end; 0 before the end, because ``ended`` is then the time limit's."""
        return max(0.0, self.ended - self.started) if self.started and self.phase is Phase.ENDED else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def from_squeue(row: str) -> tuple[str, JobInfo]:
    """Parse one row of ``squeue -O SQUEUE_FORMAT`` into job id and state."""
    job_id, state, reason, nodes, code, submitted, started, ended, restarts, *more = row.split("|")
    # Slurm 22.05 prints a wait status: 768 is exit code 3, 9 is SIGKILL.
    exit_code, signal = _pair(code) if ":" in code else (_int(code) >> 8, _int(code) & 127)
    return job_id, JobInfo(
        job_id, state, "" if reason == "None" else reason, nodes, exit_code, signal,
        _epoch(submitted), _epoch(started), _epoch(ended), _int(restarts), "".join(more[:1]),
        _int("".join(more[1:2])),
    )  # fmt: skip


def accounting_info(
    job_id: str,
    state: str,
    reason: str,
    nodes: str,
    exit_code: str,
    submitted: str,
    started: str,
    ended: str,
    directory: str,
) -> JobInfo:
    """Return a job's state from the fields of a sacct row; see :class:`~llm_bridge.slurm.accounting.Row`."""
    return JobInfo(
        job_id, state, "" if reason == "None" else reason, nodes, *_pair(exit_code),
        _epoch(submitted), _epoch(started), _epoch(ended), directory=directory,
    )  # fmt: skip


def from_outcome(job_id: str, outcome: Outcome) -> JobInfo:
    """Return a job's final state from its outcome file, for a job that Slurm has forgotten."""
    state = "FAILED" if outcome.exit_code else "COMPLETED"
    return JobInfo(
        job_id, state, exit_code=outcome.exit_code, started=outcome.started or 0, ended=outcome.ended
    )


def succeeded(
    job_id: str, outcome: Outcome, started: Started | None, submitted: float | None = None
) -> JobInfo:
    """Return the final state of a job that wrote exit code 0, from its own files.

    Args:
        job_id: Its id.
        outcome: Its outcome file.
        started: Its file about its start, if it can be read.
        submitted: Epoch seconds of its submission; None if unknown.
    """
    info = from_outcome(job_id, outcome)
    if not started:
        return info
    return replace(
        info,
        nodes=started.nodes,
        submitted=min(submitted, started.started) if submitted else 0,
        started=started.started,
        restarts=outcome.restarts,
    )


def prefer_job_outcome(info: JobInfo, outcome: Outcome | None, started: Started | None = None) -> JobInfo:
    """Return a job's state; if Slurm and the job itself differ, completed work counts.

    Slurm may report a job as running for minutes after its work (an epilog), and as failed or cancelled because of what
    happened to its nodes or its remaining processes.

    Args:
        info: The state in Slurm.
        outcome: The job's outcome file, if any; a job that Slurm runs again removes the old one first.
        started: Its file about its start, if it can be read.
    """
    if info.meaning.good or not outcome or outcome.exit_code:
        return info
    ended = info.ended
    if info.phase is not Phase.ENDED:
        # Slurm's times and the job's have different clocks.
        ended = info.started + (outcome.ended - started.started if started else 0)
    return replace(info, state="COMPLETED", reason="", exit_code=0, signal=0, ended=ended)


def _epoch(text: str) -> float:
    """Return a time that Slurm prints, in epoch seconds; 0 for text that is no time.

    Slurm prints the login node's local time without a time zone, so only differences between two times are valid.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _pair(text: str) -> tuple[int, int]:
    """Return exit code and signal of a text such as ``3:0``."""
    code, _, signal = text.partition(":")
    return _int(code), _int(signal)


def _int(text: str) -> int:
    """Return a number; 0 for other text such as "N/A", so that one odd field does not stop the poller of all jobs."""
    return int(text) if text.strip().isdigit() else 0
