"""Responses of the dashboard to requests with no token, a wrong one, and the right one."""

from __future__ import annotations

from typing import Any

from benchmarks.ray_report.support import Row, Section, ray
from testing.local_cluster import LocalCluster

WANTED = {"no token": 401, "wrong token": 403, "right token": 200}


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Send requests from the login node and return their statuses."""
    with ray(cluster, "token", ["n1"]) as job:
        job.wait_ready()
        tokens = {"no token": None, "wrong token": "0" * 64, "right token": job.token()}
        return {
            "status": {name: job.request("GET", "/api/jobs/", token)[0] for name, token in tokens.items()},
            "submit_without_token": job.request("POST", "/api/jobs/", None, {"entrypoint": "true"})[0],
        }


def rows(found: dict[str, Any]) -> list[Row]:
    """Return a row per token."""
    status = found["status"]
    shown = [Row(name, f"HTTP {status[name]}", status[name] == wanted) for name, wanted in WANTED.items()]
    submit = found["submit_without_token"]
    return [*shown, Row("submit without a token", f"HTTP {submit}", submit == 401)]


SECTION = Section("token", "token", run, rows)
