"""What Slurm's accounting says of a job that has ended, as far as a site has any."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from llm_bridge.slurm.client import SlurmClient, SlurmUnreachable

FIELDS = "JobIDRaw,State,Reason,ExitCode,DerivedExitCode,NodeList,ElapsedRaw,TotalCPU,MaxRSS,ReqMem,AllocTRES"
# sacct lags behind squeue by a second or two (measured: 0.9-1.8 s).
LOOKS = 3
LOOK_SECONDS = 1.0
_SIZE = re.compile(r"([\d.]+)([KMGTP]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


@dataclass(frozen=True)
class Accounting:
    """One job's rows of ``sacct -D``.

    :param state: the newest row's, as sacct prints it ("CANCELLED by 1001").
    :param earlier: states of its earlier lives (REQUEUED, PREEMPTED, NODE_FAIL), oldest first.
    :param gpus: that it was given on all nodes together; 0 where it had none, or Slurm does not count them.
    :param oom_step: a step that the kernel ended for want of memory, whatever the job's own state.
    :param max_rss: bytes of the largest task; 0 where nothing was sampled.
    :param node_mem: bytes that the job was given on each node; 0 where unknown.
    :param cpu_seconds: of all its processes. :param elapsed: seconds, queue not included.
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
        """The user id in "CANCELLED by 1001"; empty where it says none."""
        return self.state.partition(" by ")[2].strip()


def parse(job_id: str, text: str) -> Accounting | None:
    """Read ``sacct -n -P -D -o FIELDS``; None where accounting does not know the job (yet)."""
    rows = [row.split("|") for row in text.splitlines() if row.count("|") >= 10]
    own = [row for row in rows if row[0] == job_id]
    if not own:
        return None
    last = own[-1]
    steps = [row for row in rows if row[0].startswith(f"{job_id}.")]
    # Of an earlier life there are steps too; a size is a size, but its end is not this one's.
    oom = [row[0] for row in steps if row[1].startswith("OUT_OF_ME")] if len(own) == 1 else []
    tres = dict(item.split("=", 1) for item in last[10].split(",") if "=" in item)
    nodes = int(tres.get("node", "1") or 1)
    return Accounting(
        state=last[1],
        reason="" if last[2] == "None" else last[2],
        exit_code=last[3],
        derived=last[4],
        nodes=last[5],
        elapsed=float(last[6] or 0),
        cpu_seconds=seconds(last[7]),
        max_rss=max([size(row[8]) for row in steps] or [0.0]),
        node_mem=size(tres.get("mem", "")) / nodes,
        gpus=int(tres.get("gres/gpu", "0") or 0),
        oom_step=oom[0] if oom else "",
        earlier=tuple(row[1] for row in own[:-1]),
    )


async def look(client: SlurmClient, job_id: str, *, ended: bool) -> Accounting | None:
    """Ask sacct; None where there is no accounting, or none just now: that is no error.

    :param ended: squeue says that the job has ended: wait a little until accounting knows it too.
    """
    argv = ["sacct", "-n", "-P", "-D", "-S", "now-30days", "-o", FIELDS, "-j", job_id]
    found = None
    for number in range(LOOKS):
        if number:
            await asyncio.sleep(LOOK_SECONDS)
        try:
            done = await client.slurm(argv)
        except SlurmUnreachable:
            return found
        if done.code:
            return None
        found = parse(job_id, done.stdout)
        if found and (not ended or found.state not in ("RUNNING", "PENDING", "COMPLETING")):
            break
    return found


async def down_nodes(client: SlurmClient, node_list: str) -> tuple[str, ...]:
    """Those of a job's nodes that Slurm shows as down: the names to leave out. Empty where Slurm cannot tell."""
    try:
        done = await client.slurm(["sinfo", "-h", "-N", "-n", node_list, "-o", "%N %t"])
    except SlurmUnreachable:
        return ()
    rows = (line.split() for line in done.stdout.splitlines()) if done.code == 0 else ()
    bad = [
        row[0]
        for row in rows
        if len(row) == 2 and ("*" in row[1] or row[1].startswith(("down", "fail", "boot")))
    ]
    return tuple(dict.fromkeys(bad))


def size(text: str) -> float:
    """Bytes of ``10660K`` or ``4G``; 0 for nothing."""
    found = _SIZE.match(text.strip())
    return float(found.group(1)) * _UNITS[found.group(2)] if found else 0.0


def seconds(text: str) -> float:
    """Seconds of ``1-02:03:04``, ``02:03:04`` or ``03:04.005``; 0 for nothing."""
    days, _, rest = text.strip().rpartition("-")
    total = 0.0
    try:
        for part in rest.split(":"):
            total = total * 60 + float(part or 0)
        return total + 86400 * float(days or 0)
    except ValueError:
        return 0.0
