"""Read Slurm's accounting (sacct), if the site has one: the only list of its fields and the only parser."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
        limit: TimelimitRaw, minutes; "UNLIMITED" or "Partition_Limit". This field and the next ones are empty where
            the site's sacct does not have them.
        usage_average: TRESUsageInAve of a step, with ``gres/gpuutil`` and ``gres/gpumem`` where the site records them.
        usage_max: TRESUsageInMax, likewise.
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
    limit: str = ""
    usage_average: str = ""
    usage_max: str = ""


FIELDS = (
    "JobIDRaw,State,Reason,NodeList,ExitCode,DerivedExitCode,Submit,Start,End,WorkDir,"
    "ElapsedRaw,TotalCPU,MaxRSS,AllocTRES"
)
# Fields of which nothing but the efficiency depends: an sacct that refuses one is asked again without them.
USAGE_FIELDS = "TimelimitRaw,TRESUsageInAve,TRESUsageInMax"
_NUMBERS_OF_FIELDS = (FIELDS.count(",") + 1, FIELDS.count(",") + USAGE_FIELDS.count(",") + 2)


def argv(job_ids: Iterable[str], *, steps: bool = False, usage: bool = False) -> list[str]:
    """Return the sacct command for some jobs: all records of each id (``-D``), the oldest first.

    A job has a record for each run, before and after a requeue. After a crash, slurmctld may give a job's id to another
    one: see :func:`of_job`.

    Args:
        job_ids: The jobs.
        steps: Also list their steps.
        usage: Also print USAGE_FIELDS.
    """
    rows = ["-D"] if steps else ["-D", "-X"]
    fields = f"{FIELDS},{USAGE_FIELDS}" if usage else FIELDS
    return ["sacct", *rows, "-n", "-P", "-S", "now-30days", "-o", fields, "-j", ",".join(job_ids)]


def refuses_a_field(errors: str) -> bool:
    """Return True if sacct does not have a field that it was asked for.

    Args:
        errors: Its standard error.
    """
    return "invalid field" in errors.lower()


def rows(text: str) -> list[Row]:
    """Return the rows in sacct's output; lines with another number of fields are ignored."""
    found = (line.split("|") for line in text.splitlines())
    return [Row(*fields) for fields in found if len(fields) in _NUMBERS_OF_FIELDS]


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
        elapsed: Seconds of run time of its newest run, without the time in the queue.
        cpu_seconds: CPU time of all its processes.
        max_rss: Bytes of the largest task; 0 if nothing was sampled.
        node_mem: Bytes of memory allocated on each node; 0 if unknown.
        gpus: Number of GPUs on all nodes together; 0 if it had none, or Slurm does not count them.
        oom_step: A step that the kernel killed because memory ran out, independent of the job's own state.
        earlier: States of its earlier runs (REQUEUED, PREEMPTED, NODE_FAIL), oldest first.
        earlier_seconds: Seconds of run time of these.
        cpus: Number of CPUs on all nodes together; 0 if unknown.
        node_count: Number of nodes; 0 if unknown.
        limit_seconds: Time limit; 0 if it has none, or it is unknown.
        gpu_percent: Utilisation of a task's GPUs as Slurm has recorded it (``gres/gpuutil``): the average of the tasks,
            each with the sum over its GPUs; None where the site does not record it.
        gpu_percent_max: The same of the task with the highest.
        gpu_memory: Bytes of the task with the most GPU memory (``gres/gpumem``), on all its GPUs; None likewise.
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
    earlier_seconds: float = 0
    cpus: int = 0
    node_count: int = 0
    limit_seconds: float = 0
    gpu_percent: float | None = None
    gpu_percent_max: float | None = None
    gpu_memory: float | None = None

    def efficiency(self) -> dict[str, float]:
        """Return what the job used of what it requested, as JSON values; what is unknown is left out.

        ``cpu_percent`` of the allocated CPUs, ``memory_gib`` of the largest task and ``memory_limit_gib`` of a node,
        ``run_s`` and ``limit_s``, ``gpu_percent`` and ``gpu_percent_max`` of 100 for each of the ``gpus_per_node``, and
        ``gpu_memory_gib``.
        """
        per_node = self.gpus / (self.node_count or 1)
        of_cpus = self.elapsed * self.cpus
        found = {
            "cpu_percent": 100 * self.cpu_seconds / of_cpus if of_cpus else None,
            "memory_gib": self.max_rss / 2**30 or None,
            "memory_limit_gib": self.node_mem / 2**30 or None,
            "run_s": self.elapsed or None,
            "limit_s": self.limit_seconds or None,
            "gpu_percent": self.gpu_percent,
            "gpu_percent_max": self.gpu_percent_max,
            "gpu_memory_gib": None if self.gpu_memory is None else self.gpu_memory / 2**30,
            "gpus_per_node": per_node or None,
        }
        return {name: round(value, 4) for name, value in found.items() if value is not None}

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
    tres = _tres(last.tres)
    return Accounting(
        state=last.state,
        reason="" if last.reason == "None" else last.reason,
        exit_code=last.exit_code,
        derived=last.derived_exit_code,
        nodes=last.nodes,
        elapsed=_elapsed(last),
        cpu_seconds=parse_seconds(last.cpu),
        max_rss=max([parse_size(row.max_rss) for row in steps] or [0.0]),
        node_mem=parse_size(tres.get("mem", "")) / (_count(tres.get("node", "")) or 1),
        gpus=_count(tres.get("gres/gpu", "")),
        oom_step=oom[0] if oom else "",
        earlier=tuple(row.state for row in own[:-1]),
        earlier_seconds=sum(map(_elapsed, own[:-1])),
        cpus=_count(tres.get("cpu", "")),
        node_count=_count(tres.get("node", "")),
        limit_seconds=60 * float(_count(last.limit)),
        gpu_percent=_highest("gres/gpuutil", (row.usage_average for row in steps)),
        gpu_percent_max=_highest("gres/gpuutil", (row.usage_max for row in steps)),
        gpu_memory=_highest("gres/gpumem", (row.usage_max for row in steps)),
    )


def _elapsed(row: Row) -> float:
    return parse_seconds(row.elapsed) if ":" in row.elapsed else parse_size(row.elapsed)


def _tres(text: str) -> dict[str, str]:
    """Return the values in a list of trackable resources, ``NAME=VALUE,...``."""
    return dict(item.split("=", 1) for item in text.split(",") if "=" in item)


def _highest(name: str, usage: Iterable[str]) -> float | None:
    """Return the highest value of a resource in the usage of several steps; None where no step has it."""
    found = [parse_size(value) for text in usage if _SIZE.match(value := _tres(text).get(name, ""))]
    return max(found, default=None)


def describe(efficiency: Mapping[str, float]) -> str:
    """Return what a job used of what it requested as text; empty where nothing is known.

    Args:
        efficiency: Values of :meth:`Accounting.efficiency`.
    """

    def of(used: str, limit: str, unit: str, factor: float = 1.0) -> str:
        most = f" of {efficiency[limit] / factor:.3g}" if limit in efficiency else ""
        return f"{efficiency[used] / factor:.3g}{most} {unit}"

    parts = []
    if "cpu_percent" in efficiency:
        parts.append(f"CPUs {efficiency['cpu_percent']:.0f} %")
    if "memory_gib" in efficiency:
        parts.append(f"memory {of('memory_gib', 'memory_limit_gib', 'GiB')}")
    if "run_s" in efficiency:
        unit, factor = ("min", 60) if efficiency["run_s"] >= 120 else ("s", 1)
        parts.append(f"time {of('run_s', 'limit_s', unit, factor)}")
    if "gpu_percent" in efficiency:
        most = 100 * efficiency.get("gpus_per_node", 1)
        parts.append(f"GPUs of a node {efficiency['gpu_percent']:.0f} of {most:.0f} %")
    if "gpu_memory_gib" in efficiency:
        parts.append(f"GPU memory of a node {efficiency['gpu_memory_gib']:.3g} GiB")
    return ", ".join(parts)


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
