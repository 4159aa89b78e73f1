"""What Slurm says of a job, and how its commands print it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from llm_bridge.slurm.states import Phase, State, state_of

SQUEUE_FORMAT = (
    "JobID:|,State:|,Reason:|,NodeList:|,exit_code:|,"
    "SubmitTime:|,StartTime:|,EndTime:|,RestartCnt:|,WorkDir:|,PendingTime:|"
)
SACCT_FIELDS = "JobIDRaw,State,Reason,NodeList,ExitCode,Submit,Start,End,WorkDir"


@dataclass(frozen=True)
class JobInfo:
    """What Slurm says of one job. Times are epoch seconds; 0 where Slurm has none.

    :param directory: where it runs: its attempt's. A slurmctld that crashed may have lost a job and given its id to
        another; that one runs elsewhere.
    :param waited: seconds in the queue so far, or until it started, by slurmctld's own clock; 0 where unknown.
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

    def is_of(self, directory: str) -> bool:
        """Whether this is the job of the attempt in ``directory``."""
        return self.directory in ("", directory)

    @property
    def meaning(self) -> State:
        return state_of(self.state)

    @property
    def phase(self) -> Phase:
        return self.meaning.phase

    @property
    def queue_seconds(self) -> float:
        return max(0.0, self.started - self.submitted) if self.started else 0.0

    @property
    def run_seconds(self) -> float:
        """0 while the job runs: Slurm then gives the time at which its limit would end it."""
        return max(0.0, self.ended - self.started) if self.started and self.phase is Phase.ENDED else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def from_squeue(row: str) -> tuple[str, JobInfo]:
    """Read one row of ``squeue -O SQUEUE_FORMAT``: (job id, info)."""
    job_id, state, reason, nodes, code, submitted, started, ended, restarts, *more = row.split("|")
    # 22.05 prints a wait status: 768 is exit code 3, 9 is SIGKILL.
    exit_code, signal = _pair(code) if ":" in code else (_int(code) >> 8, _int(code) & 127)
    return job_id, JobInfo(
        job_id, state, "" if reason == "None" else reason, nodes, exit_code, signal,
        _epoch(submitted), _epoch(started), _epoch(ended), _int(restarts), "".join(more[:1]),
        _int("".join(more[1:2])),
    )  # fmt: skip


def from_sacct(row: str) -> tuple[str, JobInfo]:
    """Read one row of ``sacct -P -o SACCT_FIELDS``: (job id, info)."""
    job_id, state, reason, nodes, code, submitted, started, ended, *more = row.split("|")
    return job_id, JobInfo(
        job_id, state, "" if reason == "None" else reason, nodes, *_pair(code),
        _epoch(submitted), _epoch(started), _epoch(ended), directory="".join(more[:1]),
    )  # fmt: skip


def from_outcome(job_id: str, outcome: dict[str, Any]) -> JobInfo:
    """What the job itself wrote as it ended (``outcome.json``, batch.sh.j2), for when Slurm has forgotten it."""
    state = "FAILED" if outcome["exit_code"] else "COMPLETED"
    return JobInfo(
        job_id,
        state,
        exit_code=outcome["exit_code"],
        started=outcome.get("started", 0),
        ended=outcome["ended"],
    )


# What Slurm may say of a job although it had done its work before: its node died, or somebody cancelled it, right then.
# FAILED and OUT_OF_MEMORY are the job's own doing.
_CAME_AFTER = {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "TIMEOUT", "DEADLINE", "CANCELLED"}


def by_own_word(info: JobInfo, outcome: dict[str, Any] | None) -> JobInfo:
    """How a job has ended, where Slurm and the job itself may differ: work that was done is done.

    :param outcome: what the job wrote as it ended; a job that Slurm runs again removes it first.
    """
    if outcome and not outcome["exit_code"] and info.state.split(" ")[0].rstrip("+") in _CAME_AFTER:
        return replace(info, state="COMPLETED", exit_code=0, signal=0)
    return info


def _epoch(text: str) -> float:
    """Slurm prints the login node's local time without a zone; only differences of two are ever used."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _pair(text: str) -> tuple[int, int]:
    """``3:0`` as exit code and signal."""
    code, _, signal = text.partition(":")
    return _int(code), _int(signal)


def _int(text: str) -> int:
    """0 for what is no number ("N/A"): one odd field must not stop the watcher of all jobs."""
    return int(text) if text.strip().isdigit() else 0
