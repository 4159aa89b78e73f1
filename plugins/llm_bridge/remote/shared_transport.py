"""One connection to each cluster's login node, shared by its users in a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_bridge.remote.transport import LocalTransport, Transport

if TYPE_CHECKING:
    from llm_bridge.config.cluster import Cluster


@dataclass
class _SharedTransport:
    """A transport, and the number of its users."""

    transport: Transport
    users: int = 0


# One connection per cluster and event loop for all tasks and triggers: of 60 concurrent new connections, 22 failed
# because of sshd's MaxStartups.
_open: dict[tuple[int, str, str], _SharedTransport] = {}


def _new_transport(conn_id: str | None, slurm_bin: str) -> Transport:
    if not conn_id:
        return LocalTransport(slurm_bin)
    # Takes most of a second to import, which a DAG file must not cost.
    from llm_bridge.remote.ssh_transport import SshTransport

    return SshTransport(conn_id, slurm_bin)


@asynccontextmanager
async def connect(cluster: Cluster) -> AsyncIterator[Transport]:
    """Open the shared transport to ``cluster``'s login node; it is closed after its last use."""
    conn_id, slurm_bin = cluster.ssh_conn_id, cluster.slurm_bin or ""
    key = (id(asyncio.get_running_loop()), conn_id or "", slurm_bin)
    shared = _open.get(key)
    if shared is None:
        shared = _open[key] = _SharedTransport(_new_transport(conn_id, slurm_bin))
    shared.users += 1
    try:
        yield shared.transport
    finally:
        shared.users -= 1
        if not shared.users:
            _open.pop(key, None)
            await shared.transport.close()
