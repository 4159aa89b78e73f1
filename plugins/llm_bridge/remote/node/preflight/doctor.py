"""Describe the environment and the nodes of a cluster: ``python node.pyz doctor SETTINGS``, once per node by srun.

Runs the checks of :mod:`preflight.run`, and on the first node also finds the versions of the packages that trainings
use. Faults are the result of this job, not its failure: the first node writes them to ``result.json``.

Standard library only, except for what the checks run in processes of their own.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.common.job_io import log_line, write_json
from llm_bridge.remote.node.preflight.run import Preflight

# Distributions whose versions are compared with the tested ones; those that are also imported.
PACKAGES = ("torch", "verl", "ray", "transformers", "vllm", "sglang", "flash-attn")
IMPORTED = ("torch", "verl", "ray")
# From a cold file system an import takes minutes.
IMPORT_TIMEOUT_SECONDS = 240.0


def versions() -> dict[str, Optional[str]]:
    """Return the version of each package; None for one that is not installed."""
    found: dict[str, Optional[str]] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def import_error(name: str) -> str:
    """Return why a package cannot be imported; empty if it can."""
    try:
        done = programs.run([sys.executable, "-c", f"import {name}"], IMPORT_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end within {IMPORT_TIMEOUT_SECONDS:.0f} s"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")[:500]


def main() -> int:
    """Run the program; return its exit code."""
    path = Path(sys.argv[1])
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    installed = versions()
    checks = settings["checks"]
    if installed["torch"] is None:  # reported as such; without it there is nothing to measure with
        checks = {**checks, "all_reduce_seconds": 0}
    preflight = Preflight({"preflight": checks}, path.parent)
    problems = preflight.find()
    if preflight.node != preflight.nodes[0]:
        return 0
    found = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": installed,
        "import_errors": {name: import_error(name) for name in IMPORTED if installed[name]},
        "nodes": preflight.nodes,
        "reported": sorted(preflight.seen),
        "problems": problems,
        "warnings": {
            node: report["warnings"] for node, report in preflight.seen.items() if report["warnings"]
        },
        "all_reduce": preflight.measured._asdict() if preflight.measured else None,
    }
    write_json(path.parent / attempt_dir.RESULT, found)
    log_line(f"doctor: {len(preflight.nodes)} node(s), {len(problems)} with problems")
    return 0
