"""Write and read the reports of a Ray cluster's nodes: `ray_nodes/NAME.json` in the attempt's directory.

The node agents write them, the head guard reads them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import read_json, write_json


def log_line(text: str, node: str = "") -> None:
    """Print one line to the job's log, with Ray's prefix and, if given, the node's name."""
    print(f"[ray {node}] {text}" if node else f"[ray] {text}", flush=True)


class NodeReports:
    """The reports of one cluster.

    A report has `state` (starting, waiting, running, stopped or failed), `message`, which continues a sentence that
    starts with the node's name ("waits for the head"), and `at` (epoch seconds). Added as they become available:
    `ip`, `block` (first port), `gpus`, `cpus`, `python`.

    Args:
        attempt: The attempt's directory.
    """

    def __init__(self, attempt: Path) -> None:
        self.folder = attempt / attempt_dir.RAY_NODES

    def write(self, node: str, report: dict[str, Any]) -> None:
        """Write a node's report; `at` is added."""
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / attempt_dir.node_report(node), {**report, "at": time.time()})

    def read(self) -> dict[str, dict[str, Any]]:
        """Return node name -> report, of the nodes that have written one."""
        if not self.folder.is_dir():
            return {}
        # Listing the folder makes an NFS client look up files that it has cached as missing (nfs(5), lookupcache).
        files = [Path(name) for name in sorted(os.listdir(self.folder)) if not name.startswith(".")]
        reports = {
            file.stem: read_json(self.folder / file)
            for file in files
            if file.suffix == attempt_dir.JSON_SUFFIX
        }
        return {node: report for node, report in reports.items() if report}
