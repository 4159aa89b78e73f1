"""Seconds until the reason of a fault is written, and its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.ray_report.support import Row, Section, exists, ray, seconds_until
from testing.local_cluster import LocalCluster
from testing.ray_job import RayJob

LIMIT = 120.0
# Ray's default is 5 failed checks of a node; Slurm's timeout on this cluster is 10 s (default 300 s), and would be
# shorter.
VARIABLES = {"RAY_health_check_failure_threshold": "3"}


class Fault(NamedTuple):
    """Fault of a Ray cluster whose head is on n1, and the node that the reason must name."""

    title: str
    node: str
    do: Callable[[RayJob], object]
    undo: Callable[[LocalCluster], object]


def _nothing(_cluster: LocalCluster) -> None: ...


FAULTS = {
    "head_killed": Fault("head's raylet killed", "n1", lambda job: job.kill("n1", "raylet/raylet"), _nothing),
    "gcs_killed": Fault("GCS killed", "n1", lambda job: job.kill("n1", "gcs_server"), _nothing),
    "worker_off": Fault(
        "worker's node switched off",
        "n2",
        lambda job: job.slurm.power_off("n2"),
        lambda cluster: cluster.power_on("n2"),
    ),
    "network_cut": Fault(
        "worker's network cut",
        "n2",
        lambda job: job.slurm.cut("n2"),
        lambda cluster: cluster.join("n2"),
    ),
}


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Inject each fault into a separate Ray cluster."""
    return {name: _once(cluster, name, fault) for name, fault in FAULTS.items()}


def _once(cluster: LocalCluster, name: str, fault: Fault) -> dict[str, Any]:
    with ray(cluster, name, ["n1", "n2"], variables=VARIABLES) as job:
        job.wait_ready()
        fault.do(job)
        try:
            named = seconds_until(exists(job, "reason.json"), LIMIT)
            reason = job.json("reason.json") if named is not None else {"reason": "", "nodes": []}
            over = seconds_until(exists(job, "outcome.json"), LIMIT)
        finally:
            fault.undo(cluster)
    facts = {"reason": reason["reason"], "nodes": reason["nodes"], "wanted_node": fault.node}
    return {"named_s": named, "job_over_after_that_s": over, **facts}


def rows(found: dict[str, Any]) -> list[Row]:
    """Return a row per fault."""
    shown = []
    for name, fault in FAULTS.items():
        one = found[name]
        text = f"{one['named_s']} s, {' '.join(one['nodes'])}: {one['reason'][:150]}"
        shown.append(Row(fault.title, text, one["nodes"] == [fault.node]))
    return shown


SECTION = Section("faults", "faults", run, rows)
