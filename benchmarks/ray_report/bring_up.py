"""Seconds to ready at 2, 4 and 8 nodes by phase."""

from __future__ import annotations

import math
import os
import time
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.ray_report.support import Row, Section, ray
from testing.local_cluster import LocalCluster

SIZES = (2, 4, 8)
RUNS = 3
# Maximum ratio of the times for 8 and 2 nodes on the same machine.
WANTED_RATIO = 1.3
# Runs on a node: CPU seconds of all processes of one user there, their ended children's included.
CPU_SECONDS = """
import glob, os, pwd, sys
user, total = pwd.getpwnam(sys.argv[1]).pw_uid, 0
for stat in glob.glob("/proc/[0-9]*/stat"):
    try:
        if os.stat(stat).st_uid == user:
            total += sum(map(int, open(stat).read().rpartition(")")[2].split()[11:15]))
    except OSError:
        pass
print(total / os.sysconf("SC_CLK_TCK"))
"""


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Start clusters one after the other, each size several times, and return the medians."""
    sizes = {str(size): _middle([_once(cluster, size, n) for n in range(RUNS)]) for size in SIZES}
    small, large = sizes[str(SIZES[0])], sizes[str(SIZES[-1])]
    cpus = os.cpu_count() or 1
    # All nodes share this machine's CPUs, while on a real site each has its own: the total CPU time is a lower bound.
    cpu_s = large["cpu_s_of_the_head"] + (SIZES[-1] - 1) * large["cpu_s_of_a_worker"]
    return {
        "nodes": sizes,
        "ratio_8_to_2": round(large["ready_s"] / small["ready_s"], 2),
        "wanted_ratio": WANTED_RATIO,
        "cpus": cpus,
        "cpu_s_of_8_nodes": round(cpu_s, 1),
        "least_s_for_8_nodes_on_these_cpus": round(cpu_s / cpus, 1),
        "cpus_for_the_wanted_ratio": math.ceil(cpu_s / (WANTED_RATIO * small["ready_s"])),
    }


def _once(cluster: LocalCluster, size: int, number: int) -> dict[str, Any]:
    nodes = [f"n{i}" for i in range(1, size + 1)]
    load, began = os.getloadavg()[0], time.time()
    with ray(cluster, f"up-{size}-{number}", nodes) as job:
        phases = job.wait_ready()["phases"]
        cpu = [_cpu_seconds(cluster, node) for node in nodes]
    steps = list(phases)
    return {
        "ready_s": round(phases["verified"] - phases["allocated"], 2),
        "queue_s": round(phases["allocated"] - began, 2),
        "phases_s": {name: round(phases[name] - phases[before], 2) for before, name in pairwise(steps)},
        "cpu_s_of_the_head": round(cpu[0], 2),
        "cpu_s_of_a_worker": round(sum(cpu[1:]) / (size - 1), 2),
        "load_before": round(load, 1),
    }


def _cpu_seconds(cluster: LocalCluster, node: str) -> float:
    done = cluster.run(node, ["/usr/bin/python3", "-c", CPU_SECONDS, "svc"])
    return float(done.stdout)


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run with the median time, with the times of all."""
    middle = median(one["ready_s"] for one in runs)
    chosen = next(one for one in runs if one["ready_s"] == middle)
    return {**chosen, "all_ready_s": [one["ready_s"] for one in runs]}


def rows(found: dict[str, Any]) -> list[Row]:
    """Return a row per size, and the ratio."""
    shown = []
    for size, one in found["nodes"].items():
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in one["phases_s"].items())
        cpu = f"CPU s: head {one['cpu_s_of_the_head']:.1f}, a worker {one['cpu_s_of_a_worker']:.1f}"
        shown.append(Row(f"{size} nodes ready", f"{one['ready_s']:.1f} s ({phases}; {cpu})"))
    ratio = found["ratio_8_to_2"]
    least, need = found["least_s_for_8_nodes_on_these_cpus"], found["cpus_for_the_wanted_ratio"]
    # Where the nodes' own CPU time takes longer than the ratio allows, the ratio is a figure of this machine.
    can_be_shown = found["cpus"] >= need
    verdict = ratio <= WANTED_RATIO if can_be_shown else None
    text = f"{ratio} (wanted {WANTED_RATIO}{'' if can_be_shown else ', which these CPUs cannot show'})"
    shown.append(Row("8 : 2 nodes", text, verdict))
    text = f"{least} s: {found['cpu_s_of_8_nodes']} CPU s, {found['cpus']} CPUs; {WANTED_RATIO} needs {need} CPUs"
    shown.append(Row("lower bound for 8 nodes", text))
    return shown


SECTION = Section("bring_up", "bring-up", run, rows)
