"""Sections that take their measurement from another report, or from make test: Ray, upload, tests."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.bench.support import Bench, Figure, Section, load
from benchmarks.ray_report import bring_up
from testing import paths

# ---- Ray

# The old scripts' sleeps: 10 s for the head and 5 s a worker.
OLD_HEAD_SECONDS, OLD_WORKER_SECONDS = 10, 5


def run_ray(bench: Bench) -> dict[str, Any]:
    """Start Ray clusters of 2, 4 and 8 nodes, with ray-report's own section."""
    bench.site.end_jobs()
    return {"bring_up": bring_up.run(bench.cluster), "cpus": os.cpu_count()}


def ray_figures(found: dict[str, Any]) -> list[Figure]:
    """Return the ratio of 8 nodes to 2, and both beside the old script."""
    ready = found["bring_up"]
    nodes, least = ready["nodes"], ready["least_s_for_8_nodes_on_these_cpus"]
    note = (
        f"Ray: all nodes share {found['cpus']} cores here; the goal is for 16 and more. 8 nodes need "
        f"{ready['cpu_s_of_8_nodes']} CPU s, so the least that is possible here is {least} s. The old script sleeps "
        "10 s and 5 s a worker, and then checks nothing"
    )
    rows = [Figure("Ray ready, 8 nodes : 2 nodes", ready["ratio_8_to_2"], 1.1, note=note)]
    for size, one in nodes.items():
        old = OLD_HEAD_SECONDS + OLD_WORKER_SECONDS * (int(size) - 1)
        rows.append(
            Figure(
                f"Ray ready, {size} nodes, s", one["ready_s"], round(old / 3, 1), {"old script": float(old)}
            )
        )
    return rows


RAY = Section("ray", "Ray", run_ray, ray_figures)

# ---- upload


def run_upload(bench: Bench) -> dict[str, Any]:
    """Run upload-report; SIZE in MB and PAIRS are variables of the environment."""
    size, pairs = os.environ.get("SIZE", "2000"), os.environ.get("PAIRS", "4")
    environment = {**os.environ, "PYTHONPATH": f"{paths.PLUGINS}:{paths.ROOT}"}
    argv = [sys.executable, "-m", "benchmarks.upload_report", size, pairs]
    done = subprocess.run(
        argv, cwd=paths.ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def upload_figures(found: dict[str, Any]) -> list[Figure]:
    """Return the ratios to hf upload."""
    rows = []
    for key, unit, goal in (("seconds", "s", 1.0), ("cpu_seconds", "CPU s", None), ("peak_mib", "MiB", 1.2)):
        medians = found[f"median_{key}"]
        limit = None if goal is None else round(goal * medians["hf_upload"], 2)
        what = f"upload of {found['megabytes']} MB, {unit}"
        rows.append(Figure(what, medians["llm_bridge"], limit, {"hf upload": medians["hf_upload"]}))
    return rows


UPLOAD = Section("upload", "Upload", run_upload, upload_figures, needs_cluster=False)

# ---- tests


def run_tests(bench: Bench) -> dict[str, Any]:
    """Run each folder of tests by itself: seconds, CPU seconds of its processes, and of the whole machine.

    TESTS names folders below tests/ (default: unit). The machine's CPU seconds have those of the clusters' daemons, and
    of everything else that runs at that time.
    """
    found: dict[str, Any] = {}
    for name in os.environ.get("TESTS", "unit").split():
        before, busy, begin = resource.getrusage(resource.RUSAGE_CHILDREN), _busy(), time.monotonic()
        argv = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"tests/{name}"]
        if name not in ("unit", "docker"):
            argv[4:6] = []
        done = subprocess.run(argv, cwd=paths.ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name] = {
            "exit_code": done.returncode,
            "summary": done.stdout.strip().rpartition("\n")[2],
            "seconds": round(time.monotonic() - begin, 1),
            "user_s": round(after.ru_utime - before.ru_utime, 1),
            "sys_s": round(after.ru_stime - before.ru_stime, 1),
            "machine_cpu_s": round(_busy() - busy, 1),
            "load": load(),
        }
    return found


def _busy() -> float:
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, soft, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def tests_figures(found: dict[str, Any]) -> list[Figure]:
    """Return the CPU seconds of each folder."""
    note = 'Tests: user and system time of pytest and its children; TESTS="unit ray" measures other folders'
    return [
        Figure(
            f"CPU of tests/{name}, s (took {one['seconds']} s)",
            round(one["user_s"] + one["sys_s"], 1),
            note=note,
        )
        for name, one in found.items()
    ]


TESTS = Section("tests", "CPU time of tests", run_tests, tests_figures, needs_cluster=False)
