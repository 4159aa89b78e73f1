"""Check every node of a job before its long work begins: ``python node.pyz preflight SETTINGS``, once per node by srun.

Each node checks itself and writes its report to ``preflight/NODE.STEP.json``; reading the others' reports shows that
the shared file system works in both directions. Then the nodes connect to each other, and run an all-reduce over the
network that training will use. The first node collects the reports, names the nodes that failed in ``reason.json``,
and ends the job in the first minute instead of the third hour. Minor findings are printed as warnings.

Standard library only, except for the tensors and the all-reduce, which run in the training's own Python.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.node.common.job_io import Settings, log_error, log_line, read_json, write_json
from llm_bridge.remote.node.preflight import checks, network_test
from llm_bridge.remote.node.preflight.all_reduce import Measured

# The nodes wait for each other: srun starts them together, but imports from a cold file system take minutes.
REPORT_TIMEOUT_SECONDS = 300.0
CONNECTIONS_TIMEOUT_SECONDS = 60.0
POLL_INTERVAL_SECONDS = 0.2
# Concurrent connections of a node; each fails after checks.CONNECT_TIMEOUT_SECONDS.
MAX_CONNECTIONS = 256
# After the limit of the all-reduce: where it fails at once on one node, the others end only at their own limit, which
# began later, and their reports take some seconds to be seen (NFS).
REPORT_MARGIN_SECONDS = 30.0

# Node -> messages that describe its faults.
Problems = dict[str, list[str]]


class Reports:
    """The nodes' reports in one incarnation of the job (Slurm may requeue it).

    Args:
        attempt: The attempt's directory.
        nodes: Names of all nodes of the job.
        incarnation: Identifies this start of the job; reports of earlier ones are ignored.
    """

    def __init__(self, attempt: Path, nodes: list[str], incarnation: str) -> None:
        self.folder, self.nodes, self.incarnation = attempt / attempt_dir.PREFLIGHT, nodes, incarnation
        self.folder.mkdir(exist_ok=True)

    def write(self, node: str, step: str, report: dict[str, Any]) -> None:
        """Write a node's report of one step."""
        write_json(self._path(node, step), {**report, "incarnation": self.incarnation})

    def wait_for(self, step: str, seconds: float) -> dict[str, dict[str, Any]]:
        """Wait for the reports of one step.

        Args:
            step: Name of the step.
            seconds: Time limit.

        Returns:
            Node -> report: of all nodes, or of those that have written one when the time is up.
        """
        deadline = time.monotonic() + seconds
        found: dict[str, dict[str, Any]] = {}
        while True:
            os.listdir(
                self.folder
            )  # makes an NFS client look up files again that it has cached as missing (nfs(5))
            for node in self.nodes:
                report = read_json(self._path(node, step))
                if report and report["incarnation"] == self.incarnation:
                    found[node] = report
            if len(found) == len(self.nodes) or time.monotonic() > deadline:
                return found
            time.sleep(POLL_INTERVAL_SECONDS)

    def _path(self, node: str, step: str) -> Path:
        return self.folder / attempt_dir.node_report(f"{node}.{step}")


def problems(reports: dict[str, dict[str, Any]], nodes: list[str], seconds: float) -> Problems:
    """Return the faults of each node; a node without a report after ``seconds`` has one, too."""
    silent = {node: [f"no report within {seconds:.0f} s"] for node in nodes if node not in reports}
    return silent | {node: report["problems"] for node, report in reports.items() if report["problems"]}


def unreachable(reports: dict[str, dict[str, Any]]) -> Problems:
    """Return the nodes that fail to connect with the most others.

    One broken node is not a fault of all those that try to connect to it.
    """
    apart: dict[str, set[str]] = {node: set() for node in reports}
    for node, report in reports.items():
        for other in report["unreached"]:
            apart[node].add(other)
            apart[other].add(node)
    most = max(map(len, apart.values()))
    worst = {node: others for node, others in apart.items() if most and len(others) == most}
    return {node: [f"no connection with {' '.join(sorted(others))}"] for node, others in worst.items()}


def verdict(attempt: Path, found: Problems) -> int:
    """Write the faults to ``reason.json`` and to the log, and return the exit code.

    Args:
        attempt: The attempt's directory.
        found: Faults of each node.
    """
    if not found:
        return 0
    described = "; ".join(f"{node}: {', '.join(texts)}" for node, texts in sorted(found.items()))
    # Where all nodes report the same fault, no node is broken: excluding them would not help.
    same = len(found) > 1 and len({json.dumps(texts) for texts in found.values()}) == 1
    reason = Reason(f"preflight: {described}", kind="preflight", nodes=() if same else tuple(sorted(found)))
    write_json(attempt / attempt_dir.REASON, reason)
    log_error(reason.reason)
    return 1


class Preflight:
    """The checks of one job, as one of its nodes runs them.

    Args:
        settings: The job's settings; their ``preflight`` is used.
        attempt: The attempt's directory.
    """

    def __init__(self, settings: Settings, attempt: Path) -> None:
        self.wanted: dict[str, Any] = settings["preflight"]
        self.attempt = attempt
        self.nodes = os.environ["LLM_BRIDGE_NODES"].split()
        self.node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
        incarnation = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        self.reports = Reports(attempt, self.nodes, incarnation)
        self.listener: socket.socket | None = None
        # Result of the all-reduce, on the first node.
        self.measured: Measured | None = None
        self.seen: dict[str, dict[str, Any]] = {}

    def find(self) -> Problems:
        """Run the steps until one finds a fault, and return the faults of all nodes."""
        return self.alone() or self.connections() or self.together()

    def run(self) -> int:
        """Run the steps until one finds a fault, and return the exit code."""
        found = self.find()
        if self.node != self.nodes[0]:
            return 1 if found else 0
        if not found:
            log_line(f"preflight: {len(self.nodes)} node(s) in order")
        return verdict(self.attempt, found)

    def alone(self) -> Problems:
        """Check this node by itself, and return the faults of all nodes."""
        found, warnings = checks.run(self.wanted, self.node, self.reports.folder)
        for warning in warnings:
            log_line(f"preflight: warning: {self.node}: {warning}")
        self.listener = checks.listen(self.node) if not found else None
        address = self.listener.getsockname() if self.listener else None
        self.reports.write(self.node, "alone", {"problems": found, "address": address, "warnings": warnings})
        self.seen = self.reports.wait_for("alone", REPORT_TIMEOUT_SECONDS)
        return problems(self.seen, self.nodes, REPORT_TIMEOUT_SECONDS)

    def connections(self) -> Problems:
        """Connect to every other node over the interface that training will use; return the faults of all nodes."""
        addresses = {node: report["address"] for node, report in self.seen.items() if node != self.node}
        # At once: a node that reaches no other would report only after the timeouts of all of them.
        with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
            reached = pool.map(lambda address: checks.connects(*address), addresses.values())
            unreached = [node for node, ok in zip(addresses, reached, strict=True) if not ok]
        self.reports.write(self.node, "connections", {"problems": [], "unreached": unreached})
        seen = self.reports.wait_for("connections", CONNECTIONS_TIMEOUT_SECONDS)
        return problems(seen, self.nodes, CONNECTIONS_TIMEOUT_SECONDS) or unreachable(seen)

    def together(self) -> Problems:
        """Run the all-reduce over all GPUs (nodes, on CPUs), and return the faults of all nodes."""
        seconds, minimum = self.wanted["all_reduce_seconds"], self.wanted.get("min_gib_per_second") or 0.0
        gpus = self.wanted["gpus_per_node"] if self.wanted["device"] == "cuda" else 0
        size = network_test.Size(len(self.nodes), gpus)
        if not seconds or size.processes == 1:
            return {}
        own, measured = network_test.run(size, self.nodes.index(self.node), seconds, minimum)
        self.measured = measured
        if measured:
            log_line(f"preflight: {measured.backend} all-reduce over {size}: {measured.rate:.1f} GiB/s")
        slow = network_test.slow(measured, size, self.nodes, minimum) if measured else {}
        self.reports.write(self.node, "together", {"problems": own, "slow": slow})
        seen = self.reports.wait_for("together", seconds + REPORT_MARGIN_SECONDS)
        found: Problems = seen.get(self.nodes[0], {}).get("slow", {})
        return problems(seen, self.nodes, seconds) or found


def main() -> int:
    """Run the program (``python node.pyz preflight SETTINGS``); return its exit code."""
    path = Path(sys.argv[1])
    return Preflight(json.loads(path.read_text(encoding="utf-8")), path.parent).run()
