"""Small files on the shared file system by which the parts of a Ray cluster know of each other."""

from __future__ import annotations

import json
import os
from pathlib import Path


def say(text: str, who: str = "ray") -> None:
    """One line of the job's log."""
    print(f"[{who}] {text}", flush=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, atomically: a reader sees all of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def write_json(path: Path, value: dict) -> None:
    """write_private for JSON."""
    write_private(path, json.dumps(value, indent=1) + "\n")


class NodeReports:
    """What every node says of itself: `ray_nodes/NAME.json`, written by ray_node.py, read by ray_guard.py."""

    def __init__(self, attempt_dir: Path) -> None:
        self.folder = attempt_dir / "ray_nodes"

    def write(self, node: str, report: dict) -> None:
        """Say how a node is doing; `report` has "state": starting, waiting, running, failed or stopped."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_json(self.folder / f"{node}.json", {"node": node, **report})

    def read(self) -> dict[str, dict]:
        """Node name -> its report, of the nodes that wrote one."""
        # Listing the folder makes an NFS client look again for files it believes missing (nfs(5), ac and lookupcache).
        reports = {}
        for name in sorted(os.listdir(self.folder)) if self.folder.is_dir() else []:
            if name.endswith(".json") and not name.startswith("."):
                try:
                    report = json.loads((self.folder / name).read_text())
                except (OSError, ValueError):
                    continue  # replaced while it was read: the next look gets it
                reports[report["node"]] = report
        return reports
