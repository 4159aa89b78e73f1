"""Which ports a Ray cluster uses: one block of 1000 for everything, so that several clusters can share a node."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path

BLOCK = 1000
LOWEST, HIGHEST = 10_000, 32_768  # above the ports of common services, below Linux' default ephemeral range
# Ray's fixed ports by their place in the block (ray start --help, and docs.ray.io: "Configuring Ray", ports).
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
WORKERS_FROM = 20


def ports(block: int) -> dict[str, int]:
    """The ports in a block by name, with the range `workers_from`..`workers_to` of Ray's worker processes."""
    named = {name: block + place for place, name in enumerate(NAMES)}
    return {**named, "workers_from": block + WORKERS_FROM, "workers_to": block + BLOCK - 1}


def ephemeral_start() -> int:
    """First port that this machine gives to outgoing connections, which take ports without asking (ip(7))."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return HIGHEST


def blocks(ephemeral: int) -> list[int]:
    """First ports of all blocks below the ephemeral range.

    Where a site let that range begin so low that no block fits under it, the usual blocks are given all the same: a
    port that was taken by then is found when the block is checked.
    """
    top = min(ephemeral, HIGHEST)
    return list(range(LOWEST, top - BLOCK + 1, BLOCK)) or blocks(HIGHEST)


def choose(start: int, all_blocks: list[int], taken: Callable[[int], list[int]]) -> int:
    """The first block without a taken port.

    Args:
        start: where to begin to look; the job id, so that clusters that start at the same time try different blocks.
        all_blocks: from `blocks`.
        taken: block -> its ports that are in use on this node.

    Raises:
        RuntimeError: no block is free.
    """
    first = start % len(all_blocks)
    in_use = {}
    for block in all_blocks[first:] + all_blocks[:first]:
        in_use[block] = taken(block)
        if not in_use[block]:
            return block
    examples = ", ".join(str(found[0]) for found in in_use.values())
    raise RuntimeError(
        f"none of {len(all_blocks)} blocks of {BLOCK} ports is free on {socket.gethostname()}; in use: {examples}."
        " `ss -ltnp` on that node shows by whom; exclude the node (`exclude` in the cluster file) or end them"
    )


def taken(block: int) -> list[int]:
    """Ports of a block in use on this node."""
    return [port for port in _used(block) if not can_listen(port)]


def _used(block: int) -> Iterable[int]:
    return [*range(block, block + len(NAMES)), *range(block + WORKERS_FROM, block + BLOCK)]


def can_listen(port: int) -> bool:
    """Whether a port is free on all addresses of this node."""
    with socket.socket() as probe:
        # With SO_REUSEADDR only a socket that is open now counts, not the last minute's (socket(7)).
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
