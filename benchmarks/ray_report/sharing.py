"""Two Ray clusters on the same nodes at the same time."""

from __future__ import annotations

from typing import Any

from benchmarks.ray_report.support import Row, Section, ray
from testing.local_cluster import LocalCluster

NODES = ["n1", "n2"]


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Submit both before one of them is up."""
    with (
        ray(cluster, "one", NODES, gpus_per_node=4) as one,
        ray(cluster, "two", NODES, gpus_per_node=4) as two,
    ):
        jobs = (one, two)
        clusters = [job.wait_ready() for job in jobs]
        reports = [[job.json(f"ray_nodes/{node}.json") for node in NODES] for job in jobs]
        return {
            "gcs_addresses": [each["gcs_address"] for each in clusters],
            "gpus": [each["total_gpus"] for each in clusters],
            "port_blocks": [[report["block"] for report in nodes] for nodes in reports],
            "ready_s": [round(c["phases"]["verified"] - c["phases"]["allocated"], 1) for c in clusters],
            "token_of_the_other": [
                job.request("GET", "/api/jobs/", other.token())[0]
                for job, other in zip(jobs, reversed(jobs), strict=True)
            ],
        }


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the rows: both ready, on separate ports, and each refusing the other's token."""
    apart = all(a != b for a, b in zip(*found["port_blocks"], strict=True))
    ready = " and ".join(f"{seconds} s" for seconds in found["ready_s"])
    return [
        Row("both ready", f"{ready}, {found['gpus']} GPUs", found["gpus"] == [8, 8]),
        Row("blocks of ports on n1, n2", f"{found['port_blocks']}", apart),
        Row("with the other's token", f"HTTP {found['token_of_the_other']}", found["token_of_the_other"] == [403, 403]),
    ]  # fmt: skip


SECTION = Section("sharing", "two on the same nodes", run, rows)
