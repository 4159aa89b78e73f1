"""Run the all-reduce (all_reduce.py) on this node, and find the slow nodes in its result."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.preflight.all_reduce import Measured

POLL_INTERVAL_SECONDS = 0.1
# After the first process has failed: a second one may say more, as the one that has lost its connection does not.
FAILURE_GRACE_SECONDS = 3.0


class Size(NamedTuple):
    """Processes of an all-reduce.

    Attributes:
        nodes: Number of nodes.
        gpus: GPUs of each node; 0 for one process per node, on CPUs.
    """

    nodes: int
    gpus: int

    def __str__(self) -> str:
        each = f" x {self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.nodes} node{'s' if self.nodes > 1 else ''}{each}"

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.nodes * max(self.gpus, 1)


def run(size: Size, node: int, seconds: float, minimum: float) -> tuple[list[str], Measured | None]:
    """Run this node's processes of the all-reduce, which may hang or crash.

    Args:
        size: Number of nodes and GPUs.
        node: Number of this node in the job, from 0.
        seconds: Time limit.
        minimum: Rate in GiB/s below which the processes look for slow nodes, too.

    Returns:
        Messages that describe the faults, and on the first node the result.
    """
    count = max(size.gpus, 1)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{local}.out" for local in range(count)]
        errors = [Path(folder) / f"{local}.err" for local in range(count)]
        processes = []
        for local in range(count):
            arguments = [node, size.nodes, local, count, os.environ["RENDEZVOUS_HOST"]]
            arguments += ["cuda" if size.gpus else "cpu", minimum]
            command = programs.command("preflight-all-reduce", *map(str, arguments))
            with outputs[local].open("w") as out, errors[local].open("w") as err:
                processes.append(subprocess.Popen(command, stdout=out, stderr=err))
        failed = _wait(processes, seconds)
        if failed is None:
            # Each process waits for the others: the first that still runs has the same last line as all of them.
            return [f"all-reduce over {size} did not end within {seconds:.0f} s{_last_line(errors[0])}"], None
        if failed:
            gpu = f" on GPU {failed[0]}" if size.gpus else ""
            return [f"all-reduce over {size} failed{gpu}{_last_line(errors[failed[0]])}"], None
        if node:
            return [], None
        return [], _measured(outputs[0].read_text(errors="replace"))


def _measured(output: str) -> Measured:
    """Return the result in the first process's output, where NCCL writes too if NCCL_DEBUG is set, also at its end."""
    line = next(line for line in reversed(output.splitlines()) if line.startswith('["'))
    return Measured(*json.JSONDecoder().raw_decode(line)[0])


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> list[int] | None:
    """Wait until all processes have ended, and end them some time after one has failed.

    Returns:
        Numbers of those that failed, the earliest first; None if the time was up before any failed.
    """
    deadline = time.monotonic() + seconds
    failed: list[int] = []
    try:
        while any(process.poll() is None for process in processes):
            new = [n for n, process in enumerate(processes) if process.poll() and n not in failed]
            if new and not failed:
                deadline = min(deadline, time.monotonic() + FAILURE_GRACE_SECONDS)
            failed += new
            if time.monotonic() > deadline:
                return failed or None
            time.sleep(POLL_INTERVAL_SECONDS)
        return failed + [n for n, process in enumerate(processes) if process.returncode and n not in failed]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            programs.kill(process)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:500]}" if lines else ""


def slow(measured: Measured, size: Size, nodes: list[str], minimum: float) -> dict[str, list[str]]:
    """Return the nodes that make the all-reduce slower than required, with a message each.

    These are the nodes that are slow with both neighbours; if that is none or all of them, all have the same message.

    Args:
        measured: Result of the all-reduce.
        size: Number of nodes and GPUs.
        nodes: Names of the nodes.
        minimum: ``preflight.min_gib_per_second`` of the cluster file.
    """
    if measured.rate >= minimum:
        return {}
    required = f"{measured.rate:.1f} GiB/s over {size}, preflight.min_gib_per_second requires {minimum:g}"
    rates: dict[int, dict[int, float]] = {node: {} for node in range(len(nodes))}
    for one, other, found in measured.pairs:
        rates[one][other] = rates[other][one] = found
    bad = [node for node, pairs in rates.items() if pairs and max(pairs.values()) < minimum]
    if not bad or len(bad) == len(nodes):
        return {node: [f"all-reduce is too slow: {required}"] for node in nodes}
    found_of = {
        node: " and ".join(f"{found:.1f} GiB/s with {nodes[other]}" for other, found in rates[node].items())
        for node in bad
    }
    return {nodes[node]: [f"all-reduce is too slow: {found_of[node]} ({required})"] for node in bad}
