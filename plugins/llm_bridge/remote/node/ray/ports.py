"""Choose the ports of a Ray cluster: one block of 1000 for all of them, so that several clusters can share a node."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from llm_bridge.remote.node.common.rendezvous import RENDEZVOUS_PORTS

BLOCK = 1000
# Above the rendezvous ports of other jobs on the node, below Linux' default ephemeral range.
MIN_PORT, MAX_PORT = RENDEZVOUS_PORTS.stop, 32_768
# Ray's fixed ports by their offset in the block (ray start --help, and docs.ray.io: "Configuring Ray", ports).
NAMES = (
    "gcs",
    "dashboard",
    "node_manager",
    "object_manager",
    "agent_http",
    "agent_grpc",
    "runtime_env",
    "metrics",
    "client",
    "autoscaler_metrics",
    "dashboard_metrics",
)
# Bound for as long as a cluster uses the block: its ports themselves are bound only seconds after it was chosen.
LOCK_OFFSET = len(NAMES)
FIRST_WORKER_OFFSET = 20


def ports(block: int) -> dict[str, int]:
    """Return the ports of a block by name, with the range `workers_from`..`workers_to` of Ray's worker processes.

    Args:
        block: First port of the block.
    """
    named = {name: block + offset for offset, name in enumerate(NAMES)}
    return {**named, "workers_from": block + FIRST_WORKER_OFFSET, "workers_to": block + BLOCK - 1}


def ephemeral_start() -> int:
    """Return the first port that this machine uses for outgoing connections, which take any free one (ip(7))."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return MAX_PORT


def blocks(ephemeral: int) -> list[int]:
    """Return the first ports of all blocks below the ephemeral range.

    Where a site's ephemeral range starts so low that no block fits below it, this returns the usual blocks: a port that
    is in use by then is found when the block is checked.

    Args:
        ephemeral: First port of the ephemeral range.
    """
    top = min(ephemeral, MAX_PORT)
    return list(range(MIN_PORT, top - BLOCK + 1, BLOCK)) or blocks(MAX_PORT)


def choose(start: int, all_blocks: list[int], in_use: Callable[[int], list[int]]) -> int:
    """Return the first block without a port in use.

    Args:
        start: Number of the block to try first, modulo their number; the job id, so that clusters that start at the
            same time try different blocks.
        all_blocks: First ports of the blocks, from `blocks`.
        in_use: Returns the ports of a block that are in use on this node.

    Raises:
        RuntimeError: No block is free.
    """
    first = start % len(all_blocks)
    used = {}
    for block in all_blocks[first:] + all_blocks[:first]:
        used[block] = in_use(block)
        if not used[block]:
            return block
    examples = ", ".join(str(found[0]) for found in used.values())
    raise RuntimeError(
        f"none of {len(all_blocks)} blocks of {BLOCK} ports is free on {socket.gethostname()}; in use: {examples}."
        " `ss -ltnp` on that node lists the programs that use them; end those, or exclude the node (`exclude` in the"
        " cluster file)"
    )


def take(start: int, all_blocks: list[int]) -> tuple[int, socket.socket]:
    """Choose a block as :func:`choose` does, and reserve it against other clusters that start on this node.

    Args:
        start: As for :func:`choose`.
        all_blocks: As for :func:`choose`.

    Returns:
        The block, and the socket that reserves it until it is closed, by this process's end at the latest.

    Raises:
        RuntimeError: No block is free.
    """
    reserved: dict[int, socket.socket] = {}

    def in_use(block: int) -> list[int]:
        lock = socket.socket()
        try:
            # Without SO_REUSEADDR: a second process cannot bind the port, although nothing listens there.
            lock.bind(("", block + LOCK_OFFSET))
        except OSError:
            lock.close()
            return [block + LOCK_OFFSET]
        if found := ports_in_use(block):
            lock.close()
        else:
            reserved[block] = lock
        return found

    block = choose(start, all_blocks, in_use)
    return block, reserved[block]


def ports_in_use(block: int) -> list[int]:
    """Return the ports of a block that are in use on this node."""
    return [port for port in _candidates(block) if not can_listen(port)]


def _candidates(block: int) -> Iterable[int]:
    return [*range(block, block + len(NAMES)), *range(block + FIRST_WORKER_OFFSET, block + BLOCK)]


def can_listen(port: int) -> bool:
    """Return True if a port is free on all addresses of this node."""
    with socket.socket() as probe:
        # With SO_REUSEADDR a socket counts only while it is open, not in the minute after it was closed (socket(7)).
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
