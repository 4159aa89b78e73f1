"""What every node of a Ray cluster says of itself: `ray_nodes/NAME.json` in the attempt's directory.

ray_node.py writes, ray_guard.py reads.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from job_io import read_json, write_json


def say(text: str, node: str = "") -> None:
    """One line of the job's log."""
    print(f"[ray {node}] {text}" if node else f"[ray] {text}", flush=True)


class NodeReports:
    """The reports of one cluster.

    A report has `state` (starting, waiting, running, stopped or failed), `message`, which goes on after the
    node's name ("waits for the head"), and `at`, when. As they become known: `ip`, `block` (first port), `gpus`,
    `cpus`, `python`.
    """

    def __init__(self, attempt_dir: Path) -> None:
        self.folder = attempt_dir / "ray_nodes"

    def write(self, node: str, report: dict[str, Any]) -> None:
        """Say how a node is doing."""
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / f"{node}.json", {**report, "at": time.time()})

    def read(self) -> dict[str, dict[str, Any]]:
        """Node name -> its report, of the nodes that wrote one."""
        if not self.folder.is_dir():
            return {}
        # Listing the folder makes an NFS client look anew for files that it believes missing (nfs(5), lookupcache).
        files = [Path(name) for name in sorted(os.listdir(self.folder)) if not name.startswith(".")]
        reports = {file.stem: read_json(self.folder / file) for file in files if file.suffix == ".json"}
        return {node: report for node, report in reports.items() if report}
