"""One connection to each cluster's login node, shared by its users in a process, and by the tasks of a host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from llm_bridge.remote.helper_calls import Calls, HelperCalls
from llm_bridge.remote.transport import LocalTransport, Transport

if TYPE_CHECKING:
    from llm_bridge.config.cluster import Cluster

Result = TypeVar("Result")


@dataclass
class Login:
    """A connection to a login node, and the calls of helpers by it."""

    transport: Transport
    calls: Calls
    users: int = 0


# One connection per cluster and event loop for all tasks and triggers: of 60 concurrent new connections, 22 failed
# because of sshd's MaxStartups.
_open: dict[tuple[int, str, str, str], Login] = {}
# True in a task, which shares a connection with the other tasks of its host.
_in_task: ContextVar[bool] = ContextVar("_in_task", default=False)


def run_in_task(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in the process of an Airflow task; it shares the host's connections to login nodes.

    Triggers and commands, which are processes of their own for long, have connections of their own.
    """
    reset = _in_task.set(True)
    try:
        return asyncio.run(work)
    finally:
        _in_task.reset(reset)


def _own(conn_id: str, slurm_bin: str, login_python: str) -> tuple[Transport, Calls]:
    # Takes a while to import, which a DAG file must not cost.
    from llm_bridge.remote.ssh_transport import SshTransport

    transport = SshTransport(conn_id, slurm_bin)
    return transport, HelperCalls(transport, login_python)


def _new_login(conn_id: str | None, slurm_bin: str, login_python: str) -> Login:
    if not conn_id:
        local = LocalTransport(slurm_bin)
        return Login(local, HelperCalls(local, login_python))
    if _in_task.get():
        from llm_bridge.remote import host_session

        if host_session.is_possible():
            session = host_session.HostSession(
                conn_id, slurm_bin, login_python, lambda: _own(conn_id, slurm_bin, login_python)
            )
            return Login(session, session)
    return Login(*_own(conn_id, slurm_bin, login_python))


@asynccontextmanager
async def connect(cluster: Cluster) -> AsyncIterator[Login]:
    """Open the shared connection to ``cluster``'s login node; it is closed after its last use."""
    conn_id, slurm_bin = cluster.ssh_conn_id, cluster.slurm_bin or ""
    key = (id(asyncio.get_running_loop()), conn_id or "", slurm_bin, cluster.login_python)
    shared = _open.get(key)
    if shared is None:
        shared = _open[key] = _new_login(conn_id, slurm_bin, cluster.login_python)
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
