"""SSH connection to a cluster's login node.

Apart from ``transport``, because asyncssh and the ssh provider take most of a second to import, which a DAG file must
not cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.ssh.hooks.ssh import SSHHookAsync
from airflow.sdk.exceptions import AirflowNotFoundException
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from llm_bridge.exceptions import (
    ConfigError,
    HostKeyNotTrusted,
    LoginDenied,
    LoginNodeUnreachable,
    NoConnection,
)
from llm_bridge.remote import handshakes, ssh_settings
from llm_bridge.remote.transport import (
    CONNECT_TIMEOUT_SECONDS,
    CleanCommand,
    Completed,
    Session,
    new_marker,
    started,
)

# Limit of concurrent channels per connection; sshd's default MaxSessions is 10.
MAX_CHANNELS = 8
# Exceptions of a connection that broke.
BROKEN = (asyncssh.Error, OSError)

# At INFO asyncssh logs every command and channel to the task's log.
asyncssh.set_log_level("WARNING")


# A refused channel is safe to retry, because nothing has run yet. sshd counts a session until its process has ended, so
# it refuses channels also in a burst just below MaxSessions.
_channel_retry = retry(
    retry=retry_if_exception_type(asyncssh.ChannelOpenError),
    wait=wait_random(0.05, 0.5),
    stop=stop_after_attempt(8),
    reraise=True,
)


# sshd closes a connection before its greeting when too many others have not logged in yet (MaxStartups).
_login_retry = retry(
    retry=retry_if_exception_type((asyncssh.ConnectionLost, ConnectionResetError)),
    wait=wait_random(0.2, 2.0),
    stop=stop_after_attempt(5),
    reraise=True,
)


@_channel_retry
async def _start(
    connection: asyncssh.SSHClientConnection, command: str, stderr: int
) -> asyncssh.SSHClientProcess[bytes]:
    return await connection.create_process(command, encoding=None, stderr=stderr)


class _StrictHook(SSHHookAsync):
    """The provider's hook, which reads the extra ``host_key`` in all its forms."""

    def _parse_extras(self, conn: Any) -> None:
        super()._parse_extras(conn)
        if "host_key" in conn.extra_dejson:
            # Of any host, because this connection has only one: ~/.ssh/config may give it another name.
            keys = ssh_settings.host_keys(str(conn.extra_dejson["host_key"]))
            self.known_hosts = b"".join(b"* " + key.export_public_key() for key in keys)


class SshTransport:
    """One SSH connection, opened at its first use and again after it is lost, with at most 8 concurrent channels.

    The provider's hook makes asyncssh send a keepalive every 30 s, and reads ``~/.ssh/config``, which is the place for
    ``ProxyJump``.

    Args:
        conn_id: Airflow connection of type SSH.
        slurm_bin: Directory of Slurm's commands on the login node; empty for those in PATH.
    """

    def __init__(self, conn_id: str, slurm_bin: str = "") -> None:
        self.conn_id = conn_id
        self._wrap = CleanCommand(repr(conn_id), slurm_bin, new_marker())
        self._connection: asyncssh.SSHClientConnection | None = None
        self._opening = asyncio.Lock()
        self._channels = asyncio.Semaphore(MAX_CHANNELS)

    @asynccontextmanager
    async def _process(
        self, connection: asyncssh.SSHClientConnection, argv: Sequence[str]
    ) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        process = await _start(connection, self._wrap.command_line(argv), asyncssh.PIPE)
        try:
            yield process
        finally:
            process.close()

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command; see :meth:`Transport.run`."""
        async with self._channels:
            connection = await self._connected()
            process = self._process(connection, argv)
            try:
                code, out, err = await self._wrap.run(process, argv[0], stdin, timeout)
            except LoginNodeUnreachable:
                raise
            except BROKEN as error:
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while running `{argv[0]}`: {error}"
                ) from error
        # None: the session ended without an exit status, for example because sshd was killed. The provider's own
        # run_command returns 0 then.
        if code is None or code < 0:
            raise LoginNodeUnreachable(f"the SSH session {self.conn_id!r} ended in the middle of `{argv[0]}`")
        return Completed(code, out, err)

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        """Start a program that answers requests; see :meth:`Transport.session`."""
        async with self._channels:
            connection = await self._connected()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    process = await _start(connection, self._wrap.command_line(argv), asyncssh.DEVNULL)
            except (*BROKEN, TimeoutError) as error:
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while starting `{argv[0]}`: {error}"
                ) from error
            try:
                yield await started(self._wrap, process.stdin, process.stdout, BROKEN)
            finally:
                process.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            await self._connection.wait_closed()
            self._connection = None

    async def _connected(self) -> asyncssh.SSHClientConnection:
        async with self._opening:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            return self._connection

    @_login_retry
    async def _log_in(self, hook: _StrictHook) -> asyncssh.SSHClientConnection:
        async with handshakes.turn(self.conn_id), asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            connection: asyncssh.SSHClientConnection = await hook.get_conn()  # type: ignore[no-untyped-call]
            return connection

    async def _connect(self) -> asyncssh.SSHClientConnection:
        hook = _StrictHook(ssh_conn_id=self.conn_id)
        try:
            settings = await get_async_connection(self.conn_id)
        except AirflowNotFoundException:
            raise NoConnection(
                f"Airflow has no connection {self.conn_id!r}: create it (Admin > Connections, type SSH) or set "
                "ssh_conn_id in the cluster file to one that exists"
            ) from None
        try:
            if wrong := ssh_settings.problems(settings):
                raise ConfigError(
                    f"Airflow connection {self.conn_id!r} (Admin > Connections): {'; '.join(wrong)}"
                )
            return await self._log_in(hook)
        except asyncssh.HostKeyNotVerifiable as error:
            raise HostKeyNotTrusted(
                f"the login node of {self.conn_id!r} presented a host key that is not trusted ({error}): "
                f"{ssh_settings.trusted(settings)}. Compare the fingerprint that `{ssh_settings.scan(settings)} | "
                "ssh-keygen -lf -` shows with the one that your administrators publish; then, in the extra "
                f"'host_key' of the connection, {ssh_settings.host_key_form(settings)}"
            ) from None
        except asyncssh.PermissionDenied as error:
            raise LoginDenied(
                f"the login node of {self.conn_id!r} refused the login ({error}) with "
                f"{ssh_settings.credentials(settings)}: check login and extra of that connection; `ssh -i KEY_FILE "
                "LOGIN@HOST true` must work on Airflow's hosts, as the user that runs Airflow"
            ) from None
        except (ValueError, FileNotFoundError) as error:  # also asyncssh.KeyImportError
            raise ConfigError(
                f"{ssh_settings.credentials(settings)} of connection {self.conn_id!r} is unusable: {error}. It must be "
                "a private key, with its 'passphrase' in the extra if it has one"
            ) from None
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise LoginNodeUnreachable(
                f"cannot open SSH connection {self.conn_id!r} to {settings.host}, port {settings.port or 22}: "
                f"{error or type(error).__name__}"
            ) from error
