"""Section about scale: 10,000 jobs on 20 clusters, with Slurm simulated.

Each cluster is a cluster file without SSH: its "login node" is this machine, and ``squeue`` and ``sacct`` are a program
that answers from a file (``simulated/squeue``). Triggers, pollers, transport and the helpers on the login node are
llm-bridge's own. sshd is left out, and this machine runs the 20 login nodes' helpers, too; their share is shown apart.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench.following import SETTLE_SECONDS, triggers
from benchmarks.bench.support import FOLDER, Bench, Figure, Section, load, spread, use_of
from llm_bridge.remote import attempt_dir
from testing.waiting import until

CLUSTERS, EACH = 20, 500
# Jobs that end each second while ends are measured, and for how long.
ENDS, ENDING_SECONDS = 10, 60
WAITING_SECONDS = 60.0
# Airflow's default `[triggerer] capacity`: with it so many triggers are in one process, on all clusters.
CAPACITY = 1000


def _site(include: Path, folder: Path, name: str, first: int, jobs: int) -> list[tuple[str, str, str]]:
    """Write a simulated cluster and its jobs; return cluster, id and directory of each job."""
    bin_dir, workspace = folder / name / "bin", folder / name / "workspace"
    bin_dir.mkdir(parents=True)
    program = Path(__file__).with_name("simulated") / "squeue"
    for command in ("squeue", "sacct"):
        shutil.copy(program, bin_dir / command)
        (bin_dir / command).chmod(stat.S_IRWXU)
    (include / "clusters" / f"{name}.yaml").write_text(
        f"description: simulated\nssh_conn_id: null\ngpus_per_node: 8\nworkspace: {workspace}\n"
        f"slurm_bin: {bin_dir}\nlogin_python: /usr/bin/python3\n"
    )
    found = []
    for job in range(first, first + jobs):
        directory = workspace / "dag" / "run" / f"task{job}" / "attempt-1"
        directory.mkdir(parents=True)
        found.append((name, str(job), str(directory)))
    (bin_dir / "jobs.json").write_text(json.dumps({job: directory for _, job, directory in found}))
    return found


def _end(directory: str) -> float:
    """End a job as its batch script does; return when."""
    now = time.time()
    outcome = Path(directory, attempt_dir.OUTCOME)
    outcome.with_suffix(".tmp").write_text(json.dumps({"exit_code": 0, "ended": now, "restarts": 0}))
    outcome.with_suffix(".tmp").rename(outcome)
    return now


def _follow(jobs: list[tuple[str, str, str]], name: str) -> dict[str, Any]:
    """Follow the jobs in one process; measure it while they wait, and while ten end each second."""
    with triggers(jobs, name) as (process, events, before):
        until(lambda: len(psutil.Process(process.pid).children()) >= 1, 120, 1, "the first session")
        time.sleep(SETTLE_SECONDS)
        found: dict[str, Any] = {"jobs": len(jobs), "load": load()}
        alone, both, begin = use_of(process.pid, alone=True), use_of(process.pid), time.monotonic()
        time.sleep(WAITING_SECONDS)
        took = time.monotonic() - begin
        now, now_both = use_of(process.pid, alone=True), use_of(process.pid)
        found |= {
            "cpu_percent": round(100 * (now.cpu_s - alone.cpu_s) / took, 1),
            "helpers_cpu_percent": round(
                100 * (now_both.cpu_s - both.cpu_s - now.cpu_s + alone.cpu_s) / took, 1
            ),
            "memory_mb": round((now.bytes - before.bytes) / 1e6, 1),
            "sessions": len(psutil.Process(process.pid).children()),
        }
        chosen = random.Random(1).sample(range(len(jobs)), ENDS * ENDING_SECONDS)
        ended: dict[int, float] = {}

        def end_them() -> None:
            for number in chosen:
                ended[number] = _end(jobs[number][2])
                time.sleep(1 / ENDS)

        world = threading.Thread(target=end_them)
        world.start()
        noticed: dict[int, float] = {}
        while len(noticed) < len(chosen) and (event := events.next(120)):
            noticed[event["number"]] = event["time"]
        world.join()
    late = [noticed[number] - ended[number] for number in ended if number in noticed]
    return found | {"late_s": spread(late), "not_noticed": len(chosen) - len(late)}


def run(bench: Bench) -> dict[str, Any]:
    """Follow all jobs in one process, and one triggerer's share of them."""
    folder = (FOLDER / "simulated").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    include = folder / "include"
    (include / "clusters").mkdir(parents=True)
    jobs = [
        job
        for number in range(CLUSTERS)
        for job in _site(include, folder, f"sim{number}", 1 + number * EACH, EACH)
    ]
    earlier = os.environ.get("LLM_BRIDGE_INCLUDE")
    os.environ["LLM_BRIDGE_INCLUDE"] = str(include)
    try:
        every = len(jobs) // CAPACITY
        share = _follow(jobs[::every], "scale-share")
        for _, _, directory in jobs:
            Path(directory, attempt_dir.OUTCOME).unlink(missing_ok=True)
        return {"one triggerer's share": share, "all in one process": _follow(jobs, "scale-all")}
    finally:
        os.environ.pop("LLM_BRIDGE_INCLUDE")
        if earlier:
            os.environ["LLM_BRIDGE_INCLUDE"] = earlier
        shutil.rmtree(folder, ignore_errors=True)


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return delay, CPU and memory of both."""
    rows = []
    for name, one in found.items():
        what = f"{one['jobs']} jobs, {CLUSTERS} clusters, {name} (simulated Slurm)"
        rows += [
            Figure(f"end noticed, {what}, p50, s", one["late_s"]["p50"], 1),
            Figure(f"end noticed, {what}, p95, s", one["late_s"]["p95"], 2),
            Figure(f"CPU, {what}, % of a core", one["cpu_percent"], 5 * one["jobs"] / 1000),
            Figure(f"memory, {what}, MB", one["memory_mb"], 60 * one["jobs"] / 1000),
        ]
    helpers = "; ".join(f"{one['jobs']} jobs: {one['helpers_cpu_percent']} %" for one in found.values())
    note = (
        f"Simulation: {CLUSTERS} cluster files without SSH, squeue and sacct answer from a file, {ENDS} jobs end each "
        f"second; the helpers of all {CLUSTERS} login nodes together take {helpers} of a core"
    )
    return [*rows[:-1], Figure(rows[-1].what, rows[-1].ours, rows[-1].goal, note=note)]


SECTION = Section("scale", "Scale", run, figures, needs_cluster=False)
