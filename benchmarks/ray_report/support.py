"""Common parts of the sections: the local cluster, Ray clusters on it, and the type of a section."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.local_cluster import LocalCluster
from testing.ray_job import RayJob

NODES = 8


@dataclass(frozen=True)
class Row:
    """Row of the table; `good` is true for an expected result, None without an expectation."""

    what: str
    found: str
    good: bool | None = None


@dataclass(frozen=True)
class Section:
    """Section of the report.

    Attributes:
        name: Key in report.json.
        title: Title in the table.
        run: Measures on the cluster and returns the section of report.json.
        rows: Returns the rows of the table for that.
    """

    name: str
    title: str
    run: Callable[[LocalCluster], dict[str, Any]]
    rows: Callable[[dict[str, Any]], list[Row]]


@contextmanager
def site() -> Iterator[LocalCluster]:
    """Run a separate Slurm cluster in the context."""
    cluster = LocalCluster("rayreport", ssh_port=22922, nodes=NODES, accounting=False)
    cluster.down(wipe=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down(wipe=True)


@contextmanager
def ray(cluster: LocalCluster, name: str, nodes: list[str], **settings: Any) -> Iterator[RayJob]:
    """Submit a Ray cluster for the context, and cancel it at the end."""
    cluster.wait_for_nodes(nodes, timeout=120)
    job = RayJob(cluster, f"report-{name}", nodes, **settings).submit()
    try:
        yield job
    finally:
        job.cancel()


def seconds_until(seen: Callable[[], Any], limit: float) -> float | None:
    """Return the seconds until `seen` returns a true value; None after `limit` seconds."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        if seen():
            return round(time.monotonic() - began, 1)
        time.sleep(0.05)
    return None


def exists(job: RayJob, name: str) -> Callable[[], bool]:
    """Return a function that checks whether a file in the attempt's directory exists."""
    path: Path = job.directory / name
    return path.exists
