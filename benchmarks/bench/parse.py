"""Section about parsing: CPU seconds of a DAG file above those of Airflow's own import."""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.bench.support import Bench, Figure, Section
from testing import paths

PAIRS = 5
BARE = "from airflow.sdk import DAG"
OURS = "import runpy; runpy.run_path('dags/post_training.py')"
# A DAG with the same number of tasks as post_training.
PEER = """
from airflow.sdk import DAG
from airflow.providers.ssh.operators.ssh_remote_job import SSHRemoteJobOperator
with DAG("peer"):
    for number in range(14):
        SSHRemoteJobOperator(task_id=f"t{number}", ssh_conn_id="c", command="true")
"""
PROGRAMS = {"bare airflow.sdk": BARE, "llm-bridge": OURS, "SSHRemoteJobOperator": PEER}
# Packages that cost a parse much, or that only workers and triggerers need.
HEAVY = (
    "asyncssh",
    "paramiko",
    "pandas",
    "aiohttp",
    "numpy",
    "sqlalchemy",
    "huggingface_hub",
    "ray",
    "torch",
)
LISTED = 12


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(paths.PLUGINS)}


def _seconds(program: str) -> dict[str, float]:
    """Run a program in a new Python; return its CPU seconds and seconds."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=paths.ROOT, env=_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": round(cpu, 3), "s": round(time.monotonic() - begin, 3)}


def _imports(program: str) -> dict[str, float]:
    """Return the milliseconds of each module's own import."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        cwd=paths.ROOT, env=_environment(), capture_output=True, text=True,
    )  # fmt: skip
    rows = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE)
    return {name: int(own) / 1000 for own, name in rows}


def _packages(own: dict[str, float], without: dict[str, float]) -> dict[str, float]:
    """Return the milliseconds of each package in addition to another program's imports, the most expensive first."""
    totals: dict[str, float] = {}
    for name, milliseconds in own.items():
        if name not in without:
            parts = name.split(".")
            package = ".".join(parts[:2]) if parts[0] in ("airflow", "llm_bridge") else parts[0]
            totals[package] = totals.get(package, 0.0) + milliseconds
    return dict(sorted(((name, round(ms, 1)) for name, ms in totals.items()), key=lambda row: -row[1]))


def run(bench: Bench) -> dict[str, Any]:
    """Parse in turns, and list what is imported."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():
        _seconds(program)  # compiles and fills the page cache
    for _ in range(PAIRS):
        for name, program in PROGRAMS.items():
            runs[name].append(_seconds(program))
    median = {
        name: {key: round(statistics.median(one[key] for one in all_runs), 3) for key in ("cpu_s", "s")}
        for name, all_runs in runs.items()
    }
    bare, own = _imports(BARE), _imports(OURS)
    added = _packages(own, bare)
    return {
        "median": median,
        "runs": runs,
        "modules_added": len(set(own) - set(bare)),
        "heavy": sorted(
            name for name in HEAVY if name in {module.partition(".")[0] for module in set(own) - set(bare)}
        ),
        "most_expensive_ms": dict(list(added.items())[:LISTED]),
    }


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return the seconds above bare airflow.sdk, and the number of heavy packages."""
    bare = found["median"]["bare airflow.sdk"]
    above = {
        name: {key: round(value[key] - bare[key], 3) for key in value}
        for name, value in found["median"].items()
    }
    ours, peer = above["llm-bridge"], above["SSHRemoteJobOperator"]
    top = ", ".join(f"{name} {ms:.0f}" for name, ms in list(found["most_expensive_ms"].items())[:6])
    note = (
        f"Parsing: {found['modules_added']} modules are added to airflow.sdk's; own import times in ms: {top}"
    )
    return [
        Figure(
            "DAG file above bare airflow.sdk, CPU s",
            ours["cpu_s"],
            0.3,
            {"SSHRemoteJobOperator": peer["cpu_s"]},
        ),
        Figure(
            f"heavy packages it adds ({', '.join(found['heavy']) or 'none'})",
            len(found["heavy"]),
            0,
            note=note,
        ),
    ]


SECTION = Section("parse", "Parsing", run, figures, needs_cluster=False)
