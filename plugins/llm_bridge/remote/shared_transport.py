"""One connection to each cluster's login node, shared by its users in a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_bridge.remote.helper_calls import HelperCalls
from llm_bridge.remote.transport import LocalTransport, Transport

if TYPE_CHECKING:
    from llm_bridge.config.cluster import Cluster


@dataclass
class Login:
    """A connection to a login node, and the calls of helpers by it."""

    transport: Transport
    calls: HelperCalls
    users: int = 0


# One connection per cluster and event loop for all tasks and triggers: of 60 concurrent new connections, 22 failed
# because of sshd's MaxStartups.
_open: dict[tuple[int, str, str, str], Login] = {}


def _new_transport(conn_id: str | None, slurm_bin: str) -> Transport:
    if not conn_id:
        return LocalTransport(slurm_bin)
    # Takes most of a second to import, which a DAG file must not cost.
    from llm_bridge.remote.ssh_transport import SshTransport

    return SshTransport(conn_id, slurm_bin)


@asynccontextmanager
async def connect(cluster: Cluster) -> AsyncIterator[Login]:
    """Open the shared connection to ``cluster``'s login node; it is closed after its last use."""
    conn_id, slurm_bin = cluster.ssh_conn_id, cluster.slurm_bin or ""
    key = (id(asyncio.get_running_loop()), conn_id or "", slurm_bin, cluster.login_python)
    shared = _open.get(key)
    if shared is None:
        transport = _new_transport(conn_id, slurm_bin)
        shared = _open[key] = Login(transport, HelperCalls(transport, cluster.login_python))
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            _open.pop(key, None)
            try:
                await shared.calls.close()
            finally:  # also if the user's task is cancelled meanwhile
                await shared.transport.close()
