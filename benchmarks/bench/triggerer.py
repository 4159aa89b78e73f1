"""Section about the triggerer: CPU and memory of a process with 1000 waiting jobs on one cluster."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.bench.following import OURS, SETTLE_SECONDS, WAITING_SECONDS, follow, measured, triggers
from benchmarks.bench.notice import FEW, FEW_WINDOW
from benchmarks.bench.support import Bench, Figure, Section

JOBS = 1000
PEER = "SSHRemoteJobOperator"
# One program, not 1000 logins; jobs that start in a day are pending, whatever the cluster's size.
_SUBMIT = """
cd "$1"
printf '#!/bin/sh\\ntrue\\n' > held.sh
i=0
while [ $i -lt "$2" ]; do
    mkdir -p job$i/attempt-1
    echo "$i $(sbatch --parsable --begin=now+86400 --mem=1M --chdir="$1/job$i/attempt-1" held.sh)"
    i=$((i + 1))
done
"""


def run(bench: Bench) -> dict[str, Any]:
    """Follow 1000 pending jobs, and 100 with the peer."""
    bench.site.end_jobs()
    folder = bench.new_folder("held")
    said = bench.cluster.run(
        "login", ["sh", "-c", _SUBMIT, "sh", str(folder), str(JOBS)], user="svc", timeout=600
    ).stdout
    jobs = [
        (bench.site.name, job, f"{folder}/job{number}/attempt-1")
        for number, job in (line.split() for line in said.splitlines())
    ]
    assert len(jobs) == JOBS, f"{len(jobs)} of {JOBS} jobs were submitted"
    with triggers(jobs, "held") as (process, _, before):
        time.sleep(SETTLE_SECONDS)
        found = measured(bench, process, WAITING_SECONDS)
    bench.site.end_jobs()
    return {
        OURS: {**found, "jobs": JOBS, "imported_mb": round(before.bytes / 1e6, 1)},
        PEER: follow(bench, PEER, FEW, FEW_WINDOW),
    }


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return CPU and memory per 1000 waiting jobs."""
    ours, peer = found[OURS], found[PEER]
    waiting, times = peer["waiting"], JOBS / peer["jobs"]
    note = (
        f"Triggerer: {JOBS} pending jobs on the real cluster, a SlurmJobTrigger each, in one process; memory above "
        f"that of the process before. The peer has {peer['jobs']} jobs, and its figures are multiplied by {times:.0f}"
    )
    return [
        Figure(
            "CPU per 1000 waiting jobs, % of a core",
            ours["cpu_percent"],
            5,
            {PEER: round(waiting["cpu_percent"] * times, 1)},
            note=note,
        ),
        Figure(
            "memory per 1000 waiting jobs, MB",
            round(ours["memory_mb"] - ours["imported_mb"], 1),
            60,
            {PEER: round((waiting["memory_mb"] - peer["imported_mb"]) * times, 1)},
        ),
        Figure(
            "RPCs a minute, 1000 waiting jobs",
            ours["slurmctld_a_minute"] + ours["slurmdbd_a_minute"],
            4,
        ),
    ]


SECTION = Section("triggerer", "Triggerer", run, figures)
