"""Look at every node of a job before the long work begins: ``preflight.py SETTINGS``, run once on each node by srun.

Each node looks at itself and says what it found in ``preflight/NODE.json``; reading the others' shows that the shared
file system works both ways. Then all of them add up a tensor over the network that training will use. The first node
collects what was found, names the nodes that failed in ``reason.json`` and ends the job in the first minute instead of
the third hour. What only deserves a word is printed as a warning.

Standard library only, but for the all-reduce, which runs in the training's own Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import preflight_checks
from job_io import Settings, read_json, say, write_json

FOLDER = "preflight"
# How long the nodes wait for each other: srun starts them together, but imports from a cold file system take minutes.
PATIENCE_SECONDS = 300.0
CONNECT_SECONDS = 60.0
POLL_SECONDS = 0.2

# Node -> what is wrong with it.
Problems = dict[str, list[str]]


class Reports:
    """What the nodes say of themselves, in this life of the job (Slurm may requeue it)."""

    def __init__(self, attempt_dir: Path, nodes: list[str], life: str) -> None:
        self.folder, self.nodes, self.life = attempt_dir / FOLDER, nodes, life
        self.folder.mkdir(exist_ok=True)

    def write(self, node: str, step: str, report: dict[str, Any]) -> None:
        write_json(self.folder / f"{node}.{step}.json", {**report, "life": self.life})

    def wait_for(self, step: str, seconds: float) -> dict[str, dict[str, Any]]:
        """Node -> report, of all nodes or of those that have written one when the time is up."""
        deadline = time.monotonic() + seconds
        found: dict[str, dict[str, Any]] = {}
        while True:
            os.listdir(
                self.folder
            )  # an NFS client then looks anew for files that it believes missing (nfs(5))
            for node in self.nodes:
                report = read_json(self.folder / f"{node}.{step}.json")
                if report and report["life"] == self.life:
                    found[node] = report
            if len(found) == len(self.nodes) or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)


def problems(reports: dict[str, dict[str, Any]], nodes: list[str], seconds: float) -> Problems:
    """Node -> what is wrong with it."""
    silent = {node: [f"said nothing for {seconds:.0f} s"] for node in nodes if node not in reports}
    return silent | {node: report["problems"] for node, report in reports.items() if report["problems"]}


def unreachable(reports: dict[str, dict[str, Any]]) -> Problems:
    """Nodes with which the most others have no connection: one broken node is not a fault of all that talk to it."""
    apart: dict[str, set[str]] = {node: set() for node in reports}
    for node, report in reports.items():
        for other in report["unreached"]:
            apart[node].add(other)
            apart[other].add(node)
    most = max(map(len, apart.values()))
    worst = {node: others for node, others in apart.items() if most and len(others) == most}
    return {node: [f"no connection with {' '.join(sorted(others))}"] for node, others in worst.items()}


def all_reduce(device: str, limit: float, rank: int, count: int) -> list[str]:
    """Run the all-reduce in a process of its own, which may hang or crash; what is wrong, if anything."""
    command = [sys.executable, str(Path(__file__).with_name("preflight_reduce.py"))]
    command += [str(rank), str(count), os.environ["RENDEZVOUS_HOST"], device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as expired:
        said = expired.stderr.decode(errors="replace") if isinstance(expired.stderr, bytes) else ""
        return [f"all-reduce over {count} nodes did not end within {limit:.0f} s{_last(said)}"]
    if done.returncode:
        return [f"all-reduce over {count} nodes failed{_last(done.stderr)}"]
    if rank == 0:
        say(f"preflight: {done.stdout.strip()}")
    return []


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return f": {lines[-1].strip()[:500]}" if lines else ""


def verdict(attempt_dir: Path, found: Problems) -> int:
    """Say what is wrong and where; the exit code."""
    if not found:
        return 0
    told = "; ".join(f"{node}: {', '.join(texts)}" for node, texts in sorted(found.items()))
    # If every node says the same, it is not a node that is broken: leaving them out would not help.
    same = len(found) > 1 and len({json.dumps(texts) for texts in found.values()}) == 1
    reason = f"preflight: {told}"
    write_json(
        attempt_dir / "reason.json",
        {"reason": reason, "nodes": [] if same else sorted(found), "retry": True, "kind": "preflight"},
    )
    print(f"[llm-bridge] error: {reason}", file=sys.stderr, flush=True)
    return 1


class Preflight:
    """The looks at one job, as one of its nodes takes them."""

    def __init__(self, settings: Settings, attempt_dir: Path) -> None:
        self.wanted: dict[str, Any] = settings["preflight"]
        self.attempt_dir = attempt_dir
        self.nodes = os.environ["LLM_BRIDGE_NODES"].split()
        self.node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
        life = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        self.reports = Reports(attempt_dir, self.nodes, life)

    def run(self) -> int:
        """Look until something is wrong; the exit code."""
        wrong = self.alone() or self.connections() or self.together()
        if self.node != self.nodes[0]:
            return 1 if wrong else 0
        if not wrong:
            say(f"preflight: {len(self.nodes)} node(s) in order")
        return verdict(self.attempt_dir, wrong)

    def alone(self) -> Problems:
        """Each node looks at itself."""
        found, warnings = preflight_checks.run(self.wanted, self.node, self.reports.folder)
        for warning in warnings:
            say(f"preflight: warning: {self.node}: {warning}")
        self.listener = preflight_checks.listen(self.node) if not found else None
        address = self.listener.getsockname() if self.listener else None
        self.reports.write(self.node, "alone", {"problems": found, "address": address})
        self.seen = self.reports.wait_for("alone", PATIENCE_SECONDS)
        return problems(self.seen, self.nodes, PATIENCE_SECONDS)

    def connections(self) -> Problems:
        """Each node connects to each other one, over the interface that training will use."""
        addresses = {node: report["address"] for node, report in self.seen.items() if node != self.node}
        unreached = [node for node, address in addresses.items() if not preflight_checks.connects(*address)]
        self.reports.write(self.node, "connections", {"problems": [], "unreached": unreached})
        seen = self.reports.wait_for("connections", CONNECT_SECONDS)
        return problems(seen, self.nodes, CONNECT_SECONDS) or unreachable(seen)

    def together(self) -> Problems:
        """All nodes add up a tensor."""
        limit = self.wanted["all_reduce_seconds"]
        if not limit or len(self.nodes) == 1:
            return {}
        own = all_reduce(self.wanted["device"], limit, self.nodes.index(self.node), len(self.nodes))
        self.reports.write(self.node, "together", {"problems": own})
        return problems(self.reports.wait_for("together", limit), self.nodes, limit)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    sys.exit(Preflight(json.loads(file.read_text(encoding="utf-8")), file.parent).run())
