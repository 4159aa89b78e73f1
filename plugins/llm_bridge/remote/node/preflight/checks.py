"""Check one node before a long job starts; each check returns messages that describe the faults it has found."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from llm_bridge.remote.node.common.rendezvous import rendezvous_port
from llm_bridge.remote.node.preflight import gpus
from llm_bridge.remote.node.ray import network
from llm_bridge.remote.node.ray import ports as ray_ports

CONNECT_TIMEOUT_SECONDS = 5.0
MIN_OPEN_FILES = 4096


def run(wanted: dict[str, Any], node: str, shared: Path) -> tuple[list[str], list[str]]:
    """Run all checks on this node.

    Args:
        wanted: The settings' ``preflight``: gpus_per_node, device, ray (True if the job starts Ray), temp_dir,
            min_free_gib, max_clock_skew_seconds.
        node: This node's name in Slurm.
        shared: A directory on the shared file system.

    Returns:
        Faults, which end the job, and warnings.
    """
    found, warnings = gpus.check(wanted["gpus_per_node"], wanted["device"])
    found += interface(node)
    job_id = int(os.environ["SLURM_JOB_ID"])
    if node == os.environ["LLM_BRIDGE_NODES"].split()[0]:
        found += rendezvous(job_id)
    if wanted["ray"]:
        found += ray_block(job_id)
    for path in (shared, Path(wanted["temp_dir"])):
        found += free_space(path, wanted["min_free_gib"])
    found += clock(shared, node, wanted["max_clock_skew_seconds"])
    return found, [*warnings, *limits(wanted["device"])]


def interface(node: str) -> list[str]:
    """Check that the node has the interface of the cluster file's ``network_interface``, with an address."""
    try:
        network.own_address(node)
    except RuntimeError as error:
        return [str(error)]
    return []


def rendezvous(job_id: int) -> list[str]:
    """Check on the first node that the rendezvous port of torchrun is free.

    Args:
        job_id: Slurm's id of the job.
    """
    port = rendezvous_port(job_id)
    if ray_ports.can_listen(port):
        return []
    return [
        f"port {port}, the rendezvous port of torchrun, is in use; it depends on the job id: submit the job again"
    ]


def ray_block(job_id: int) -> list[str]:
    """Check that a block of ports for Ray is free.

    Args:
        job_id: Slurm's id of the job.
    """
    try:
        _block, reservation = ray_ports.take(job_id, ray_ports.blocks(ray_ports.ephemeral_start()))
    except RuntimeError as error:
        return [str(error)]
    reservation.close()
    return []


def free_space(path: Path, gib: float) -> list[str]:
    """Check the free space on the file system of a directory, or of its nearest parent that exists.

    Args:
        path: The directory.
        gib: Required free space in GiB.
    """
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free / 2**30
    if free >= gib:
        return []
    return [f"{path} has {free:.1f} GiB left, min_free_gib of the cluster file requires {gib:g}"]


def clock(shared: Path, node: str, max_skew: float) -> list[str]:
    """Compare this node's clock with the file server's, which stamps the files of all nodes.

    Args:
        shared: A directory on the shared file system; gets a file ``NODE.clock``.
        node: This node's name.
        max_skew: Allowed difference in seconds.
    """
    probe = shared / f"{node}.clock"
    before = time.time()
    probe.write_text(node, encoding="utf-8")
    return skew(probe.stat().st_mtime, before, time.time(), max_skew)


def skew(stamp: float, before: float, after: float, max_skew: float) -> list[str]:
    """Compare a file's time stamp with this node's clock before and after the file was written.

    Args:
        stamp: The file server's time in epoch seconds.
        before: This node's time before the write, in epoch seconds.
        after: This node's time after it.
        max_skew: Allowed difference in seconds.
    """
    # The kernel stamps files with the time of its last tick, up to 10 ms ago.
    off = max(before - stamp, stamp - after, 0.0)
    if off <= max_skew:
        return []
    return [
        f"its clock is {off:.1f} s off the file server's: checkpoints would look older or newer than they are"
    ]


def limits(device: str) -> list[str]:
    """Check the resource limits that fail a job only later, under load.

    Args:
        device: ``cuda`` also checks the limit of locked memory.
    """
    found = []
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < MIN_OPEN_FILES:
        found.append(f"the limit of open files is {files} (ulimit -Hn); raise it to {MIN_OPEN_FILES} or more")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if device == "cuda" and locked != resource.RLIM_INFINITY:
        found.append(
            f"the limit of locked memory is {locked} bytes (ulimit -Hl); InfiniBand requires it to be unlimited"
        )
    return found


def listen(node: str) -> socket.socket:
    """Open a port on the training's network interface, for the other nodes to connect to."""
    return socket.create_server((network.own_address(node), 0), backlog=1024)


def connects(host: str, port: int) -> bool:
    """Return True if another node's port accepts connections."""
    return network.answers(f"{host}:{port}", CONNECT_TIMEOUT_SECONDS)
