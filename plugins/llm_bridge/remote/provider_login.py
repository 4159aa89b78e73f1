"""Log in by the hook of Airflow's ssh provider.

Apart from ``ssh_transport``, which a session process imports, too: it has no Airflow, and ``ssh_settings.options``
makes the same arguments of the connection's values.
"""

from __future__ import annotations

from typing import Any

import asyncssh
from airflow.providers.ssh.hooks.ssh import SSHHookAsync

from llm_bridge.remote import ssh_settings


class _StrictHook(SSHHookAsync):
    """The provider's hook, which reads the extra ``host_key`` in all its forms."""

    def _parse_extras(self, conn: Any) -> None:
        super()._parse_extras(conn)
        if "host_key" in conn.extra_dejson:
            self.known_hosts = ssh_settings.known_hosts_of(conn)


async def log_in(conn_id: str) -> asyncssh.SSHClientConnection:
    """Return a connection to the login node of an Airflow connection.

    Raises:
        ValueError: The private key cannot be read (asyncssh.KeyImportError).
        asyncssh.Error: The login node refuses the login, or there is no connection.
        OSError: The login node cannot be reached.
    """
    connection: asyncssh.SSHClientConnection = await _StrictHook(ssh_conn_id=conn_id).get_conn()  # type: ignore[no-untyped-call]
    return connection
