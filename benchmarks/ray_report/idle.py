"""End of an idle cluster."""

from __future__ import annotations

from typing import Any

from benchmarks.ray_report.support import Row, Section, exists, ray, seconds_until
from testing.local_cluster import LocalCluster

IDLE_MINUTES = 0.2


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Start a cluster, submit nothing to it, and wait for its end."""
    with ray(cluster, "idle", ["n1"], idle_minutes=IDLE_MINUTES) as job:
        job.wait_ready()
        named = seconds_until(exists(job, "reason.json"), 120)
        over = seconds_until(exists(job, "outcome.json"), 60)
        return {
            "idle_minutes": IDLE_MINUTES,
            "ended_s_after_that": None if named is None else round(named - IDLE_MINUTES * 60, 1),
            "job_over_after_that_s": over,
            "exit_code": job.json("outcome.json")["exit_code"],
            "reason": job.json("reason.json")["reason"],
        }


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the row."""
    text = (
        f"{found['ended_s_after_that']} s after {found['idle_minutes'] * 60:.0f} s without a job,"
        f" exit code {found['exit_code']}, reason {found['reason']!r}"
    )
    return [Row("ends itself", text, found["exit_code"] == 0 and found["reason"] == "idle")]


SECTION = Section("idle", "idle", run, rows)
