"""What the sections share: the local cluster, Ray clusters on it, and how a section is described."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import LocalCluster
from tests.ray_cluster.ray_job import RayJob

NODES = 8


@dataclass(frozen=True)
class Row:
    """One line of the table. `good`: whether it is as wanted; None where nothing is promised."""

    what: str
    found: str
    good: bool | None = None


@dataclass(frozen=True)
class Section:
    """One theme of the report.

    Args:
        name: key in report.json.
        title: in the table.
        run: does it on the cluster; gives what goes into report.json.
        rows: what of that is shown.
    """

    name: str
    title: str
    run: Callable[[LocalCluster], dict[str, Any]]
    rows: Callable[[dict[str, Any]], list[Row]]


@contextmanager
def site() -> Iterator[LocalCluster]:
    """A Slurm cluster of its own, gone afterwards."""
    cluster = LocalCluster("rayreport", ssh_port=22922, nodes=NODES, accounting=False)
    cluster.down(wipe=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down(wipe=True)


@contextmanager
def ray(cluster: LocalCluster, name: str, nodes: list[str], **settings: Any) -> Iterator[RayJob]:
    """A Ray cluster that has been submitted; cancelled at the end."""
    cluster.wait_for_nodes(nodes, timeout=120)
    job = RayJob(cluster, f"report-{name}", nodes, **settings).submit()
    try:
        yield job
    finally:
        job.cancel()


def seconds_until(seen: Callable[[], Any], limit: float) -> float | None:
    """How long it takes until `seen` gives something true; None after `limit` seconds."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        if seen():
            return round(time.monotonic() - began, 1)
        time.sleep(0.05)
    return None


def exists(job: RayJob, name: str) -> Callable[[], bool]:
    """Whether a file is there in the attempt's directory."""
    path: Path = job.directory / name
    return path.exists
