"""Read Slurm's accounting (sacct), if the site has one: the only list of its fields and the only parser."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from llm_bridge.slurm.status import JobInfo, Phase, accounting_info, state_of

_SIZE = re.compile(r"([\d.]+)([KMGTP]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


class Row(NamedTuple):
    """Row of ``sacct -n -P -o FIELDS``: of a job or, with ``-D`` and without ``-X``, of its steps and earlier runs.

    All fields are text as sacct prints it.

    Attributes:
        job_id: JobIDRaw: ``7``, or ``7.0`` and ``7.batch`` for steps.
        state: State.
        reason: Reason.
        nodes: NodeList.
        exit_code: ExitCode, ``CODE:SIGNAL``.
        derived_exit_code: DerivedExitCode, ``CODE:SIGNAL``.
        submitted: Submit, local time of the login node.
        started: Start, local time of the login node.
        ended: End, local time of the login node.
        directory: WorkDir.
        elapsed: ElapsedRaw, seconds.
        cpu: TotalCPU, ``D-HH:MM:SS``.
        max_rss: MaxRSS, such as ``10660K``.
        tres: AllocTRES.
    """

    job_id: str
    state: str
    reason: str
    nodes: str
    exit_code: str
    derived_exit_code: str
    submitted: str
    started: str
    ended: str
    directory: str
    elapsed: str
    cpu: str
    max_rss: str
    tres: str


FIELDS = (
    "JobIDRaw,State,Reason,NodeList,ExitCode,DerivedExitCode,Submit,Start,End,WorkDir,"
    "ElapsedRaw,TotalCPU,MaxRSS,AllocTRES"
)


def argv(job_ids: Iterable[str], *, steps: bool = False) -> list[str]:
    """Return the sacct command for some jobs: all records of each id (``-D``), the oldest first.

    A job has a record for each run, before and after a requeue. After a crash, slurmctld may give a job's id to another
    one: see :func:`of_job`.

    Args:
        job_ids: The jobs.
        steps: Also list their steps.
    """
    rows = ["-D"] if steps else ["-D", "-X"]
    return ["sacct", *rows, "-n", "-P", "-S", "now-30days", "-o", FIELDS, "-j", ",".join(job_ids)]


def rows(text: str) -> list[Row]:
    """Return the rows in sacct's output; lines with another number of fields are ignored."""
    found = (line.split("|") for line in text.splitlines())
    return [Row(*fields) for fields in found if len(fields) == len(Row._fields)]


def of_job(job_id: str, found: Iterable[Row], directory: str = "") -> list[Row]:
    """Return the rows of one job and its steps, in order: those of its id and its directory, which is its alone.

    Args:
        job_id: The job's id.
        found: Rows of :func:`argv`, in sacct's order: the steps of a record follow it.
        directory: Directory of its attempt; empty for the newest record of the id, whichever job it is.
    """
    own: list[Row] = []
    current = ""
    for row in found:
        if row.job_id == job_id:
            current = row.directory
        elif not row.job_id.startswith(f"{job_id}."):
            continue
        if not directory or current in ("", directory):
            own.append(row)
    if directory or not own:
        return own
    newest = next(row.directory for row in reversed(own) if row.job_id == job_id)
    return of_job(job_id, own, newest) if newest else own


def job_info(row: Row) -> JobInfo:
    """Return a job's row as a :class:`JobInfo`, like a row of squeue."""
    return accounting_info(
        row.job_id,
        row.state,
        row.reason,
        row.nodes,
        row.exit_code,
        row.submitted,
        row.started,
        row.ended,
        row.directory,
    )


@dataclass(frozen=True)
class Accounting:
    """Accounting record of one job.

    Attributes:
        state: State of its newest run, as sacct prints it ("CANCELLED by 1001").
        reason: Slurm's reason; empty for "None".
        exit_code: "CODE:SIGNAL" of the batch script.
        derived: "CODE:SIGNAL", the highest of its steps.
        nodes: Slurm's node list.
        elapsed: Seconds of run time, without the time in the queue.
        cpu_seconds: CPU time of all its processes.
        max_rss: Bytes of the largest task; 0 if nothing was sampled.
        node_mem: Bytes of memory allocated on each node; 0 if unknown.
        gpus: Number of GPUs on all nodes together; 0 if it had none, or Slurm does not count them.
        oom_step: A step that the kernel killed because memory ran out, independent of the job's own state.
        earlier: States of its earlier runs (REQUEUED, PREEMPTED, NODE_FAIL), oldest first.
    """

    state: str
    reason: str = ""
    exit_code: str = ""
    derived: str = ""
    nodes: str = ""
    elapsed: float = 0
    cpu_seconds: float = 0
    max_rss: float = 0
    node_mem: float = 0
    gpus: int = 0
    oom_step: str = ""
    earlier: tuple[str, ...] = ()

    @property
    def cancelled_by(self) -> str:
        """The user id in "CANCELLED by 1001"; empty in other states."""
        return self.state.partition(" by ")[2].strip()

    @property
    def is_final(self) -> bool:
        """True if accounting has recorded the job's end."""
        return state_of(self.state).phase is Phase.ENDED


def summarize(job_id: str, found: Iterable[Row], directory: str = "") -> Accounting | None:
    """Return a job's accounting record.

    Args:
        job_id: The job.
        found: Rows of ``argv(..., steps=True)``.
        directory: As for :func:`of_job`.

    Returns:
        The record; None if no row is the job's, which may be so shortly after its submission.
    """
    found = of_job(job_id, found, directory)
    own = [row for row in found if row.job_id == job_id]
    if not own:
        return None
    last = own[-1]
    steps = [row for row in found if row.job_id.startswith(f"{job_id}.")]
    # The steps may belong to an earlier run: their sizes count, but the earlier run's end is not this one's.
    oom = [row.job_id for row in steps if row.state.startswith("OUT_OF_ME")] if len(own) == 1 else []
    tres = dict(item.split("=", 1) for item in last.tres.split(",") if "=" in item)
    return Accounting(
        state=last.state,
        reason="" if last.reason == "None" else last.reason,
        exit_code=last.exit_code,
        derived=last.derived_exit_code,
        nodes=last.nodes,
        elapsed=parse_seconds(last.elapsed) if ":" in last.elapsed else parse_size(last.elapsed),
        cpu_seconds=parse_seconds(last.cpu),
        max_rss=max([parse_size(row.max_rss) for row in steps] or [0.0]),
        node_mem=parse_size(tres.get("mem", "")) / (_count(tres.get("node", "")) or 1),
        gpus=_count(tres.get("gres/gpu", "")),
        oom_step=oom[0] if oom else "",
        earlier=tuple(row.state for row in own[:-1]),
    )


def _count(text: str) -> int:
    """Return a number; 0 for a text that is none."""
    return int(text) if text.isdigit() else 0


def parse_size(text: str) -> float:
    """Return the bytes in a size such as ``10660K`` or ``4G``; 0 for an empty text."""
    found = _SIZE.match(text.strip())
    return float(found.group(1)) * _UNITS[found.group(2)] if found else 0.0


def parse_seconds(text: str) -> float:
    """Return the seconds in a time such as ``1-02:03:04``, ``02:03:04`` or ``03:04.005``; 0 for any other text."""
    days, _, rest = text.strip().rpartition("-")
    total = 0.0
    try:
        for part in rest.split(":"):
            total = total * 60 + float(part or 0)
        return total + 86400 * float(days or 0)
    except ValueError:
        return 0.0
