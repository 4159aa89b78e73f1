"""What a node can find out about itself before a long job: each check gives sentences about what is wrong."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import ray_network
import ray_ports
import ray_setup
from sft import rendezvous_port

DRIVER_SECONDS = 60  # a GPU that has fallen off the bus makes nvidia-smi hang
CONNECT_SECONDS = 5.0
OPEN_FILES = 4096


def run(wanted: dict[str, Any], node: str, shared: Path) -> tuple[list[str], list[str]]:
    """All checks; what is wrong, and what only deserves a word.

    :param wanted: the settings' ``preflight``: gpus_per_node, device, temp_dir, min_free_gib, max_clock_skew_seconds.
    :param shared: a folder on the shared file system.
    """
    found = gpus(wanted["gpus_per_node"], wanted["device"])
    found += interface(node)
    found += ports(int(os.environ["SLURM_JOB_ID"]), node == os.environ["LLM_BRIDGE_NODES"].split()[0])
    for path in (shared, Path(wanted["temp_dir"])):
        found += free_space(path, wanted["min_free_gib"])
    found += clock(shared, node, wanted["max_clock_skew_seconds"])
    return found, limits(wanted["device"])


def gpus(count: int, device: str) -> list[str]:
    """As many GPUs as were asked for, and a driver that answers."""
    try:
        ray_setup.usable_gpus(dict(os.environ), count)
    except ray_setup.NodeProblem as problem:
        return [str(problem)]
    if device != "cuda":
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=DRIVER_SECONDS)
    except FileNotFoundError:
        return ["has no nvidia-smi: no NVIDIA driver, or a container without --nv"]
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi does not answer within {DRIVER_SECONDS} s: a GPU hangs"]
    seen = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    if done.returncode or len(seen) < count:
        said = (done.stderr or done.stdout).strip().splitlines()
        return [f"the driver shows {len(seen)} of {count} GPUs{': ' + said[-1] if said else ''}"]
    return []


def interface(node: str) -> list[str]:
    """The interface of the cluster file's ``network_interface``."""
    try:
        ray_network.own_address(node)
    except RuntimeError as error:
        return [str(error)]
    return []


def ports(job: int, is_first: bool) -> list[str]:
    """Ports for Ray, and on the first node the one at which torchrun's nodes meet."""
    found = []
    try:
        ray_ports.choose(job, ray_ports.blocks(ray_ports.ephemeral_start()), ray_ports.taken)
    except RuntimeError as error:
        found.append(str(error))
    meeting = rendezvous_port(job)
    if is_first and not ray_ports.can_listen(meeting):
        found.append(
            f"port {meeting}, at which torchrun's nodes meet, is in use; another job id means another port"
        )
    return found


def free_space(path: Path, gib: float) -> list[str]:
    """Room on the file system of a folder, or of the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free / 2**30
    if free >= gib:
        return []
    return [f"{path} has {free:.1f} GiB left, min_free_gib of the cluster file asks for {gib:g}"]


def clock(shared: Path, node: str, most: float) -> list[str]:
    """This node's clock against the file server's, which stamps the files of all nodes."""
    probe = shared / f"{node}.clock"
    before = time.time()
    probe.write_text(node, encoding="utf-8")
    return skew(probe.stat().st_mtime, before, time.time(), most)


def skew(stamp: float, before: float, after: float, most: float) -> list[str]:
    """:param stamp: what the file server wrote between ``before`` and ``after`` of this node's clock."""
    # The kernel stamps files with the time of its last tick, up to 10 ms ago.
    off = max(before - stamp, stamp - after, 0.0)
    return (
        [
            f"its clock is {off:.1f} s off the file server's: checkpoints would look older or newer than they are"
        ]
        if (off > most)
        else []
    )


def limits(device: str) -> list[str]:
    """Limits that hurt later, under load."""
    found = []
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < OPEN_FILES:
        found.append(f"at most {most} open files (ulimit -Hn)")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if device == "cuda" and locked != resource.RLIM_INFINITY:
        found.append(
            f"locked memory is limited to {locked} bytes (ulimit -Hl): InfiniBand wants it unlimited"
        )
    return found


def listen(node: str) -> socket.socket:
    """A port on the training's interface for the other nodes to connect to."""
    return socket.create_server((ray_network.own_address(node), 0), backlog=1024)


def connects(host: str, port: int) -> bool:
    """Whether another node's port can be reached."""
    return ray_network.answers(f"{host}:{port}", CONNECT_SECONDS)
