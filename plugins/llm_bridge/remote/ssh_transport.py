"""SSH connection to a cluster's login node.

Apart from ``transport``, because asyncssh takes a while to import, which neither a DAG file nor a task must cost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncssh
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from llm_bridge.exceptions import (
    ConfigError,
    HostKeyNotTrusted,
    LoginDenied,
    LoginNodeUnreachable,
)
from llm_bridge.remote import handshakes, ssh_settings
from llm_bridge.remote.login_settings import LoginSettings
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

log = logging.getLogger(__name__)

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


@dataclass(eq=False)
class _Line:
    """A connection, and the number of its channels that are in use."""

    connection: asyncssh.SSHClientConnection
    channels: int = 0


class SshTransport:
    """One SSH connection, opened at its first use and again after it is lost, with at most 8 concurrent channels.

    A site that allows fewer (``MaxSessions`` of its sshd) gets as many connections as 8 channels take.

    Args:
        conn_id: Airflow connection of type SSH.
        slurm_bin: Directory of Slurm's commands on the login node; empty for those in PATH.
        settings: Values of the connection; None to read them from Airflow when they are needed.
    """

    def __init__(self, conn_id: str, slurm_bin: str = "", settings: LoginSettings | None = None) -> None:
        self.conn_id = conn_id
        self._settings = settings
        self._wrap = CleanCommand(repr(conn_id), slurm_bin, new_marker())
        self._lines: list[_Line] = []
        self._opening: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._channels = asyncio.Semaphore(MAX_CHANNELS)
        self._channels_per_line = MAX_CHANNELS

    @asynccontextmanager
    async def _process(
        self, line: _Line, argv: Sequence[str], stderr: int
    ) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        """Start a command in a channel of a connection, or of another one if sshd refuses the channel."""
        try:
            while True:
                try:
                    process = await _start(line.connection, self._wrap.command_line(argv), stderr)
                    break
                except asyncssh.ChannelOpenError:
                    if line.channels == 1:
                        raise
                    self._channels_per_line = line.channels - 1
                    log.info(
                        "sshd of %r refuses more than %d session(s) of a connection (MaxSessions): opening another one",
                        self.conn_id, self._channels_per_line,
                    )  # fmt: skip
                    other = await self._free_line()
                    line.channels -= 1
                    line = other
            try:
                yield process
            finally:
                process.close()
        finally:
            line.channels -= 1

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command; see :meth:`Transport.run`."""
        async with self._channels:
            process = self._process(await self._free_line(), argv, asyncssh.PIPE)
            try:
                code, out, err = await self._wrap.run(process, argv[0], stdin, timeout)
            except LoginNodeUnreachable:
                raise
            except BROKEN as error:
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while running `{argv[0]}`: {error}"
                ) from error
        # None: the session ended without an exit status, for example because sshd was killed.
        if code is None or code < 0:
            raise LoginNodeUnreachable(f"the SSH session {self.conn_id!r} ended in the middle of `{argv[0]}`")
        return Completed(code, out, err)

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        """Start a program that answers requests; see :meth:`Transport.session`."""
        async with self._channels, AsyncExitStack() as stack:
            line = await self._free_line()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    process = await stack.enter_async_context(self._process(line, argv, asyncssh.DEVNULL))
            except (*BROKEN, TimeoutError) as error:
                if isinstance(error, LoginNodeUnreachable):
                    raise
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while starting `{argv[0]}`: {error}"
                ) from error
            yield await started(self._wrap, process.stdin, process.stdout, BROKEN)

    async def close(self) -> None:
        """Close the connection."""
        if self._opening:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        lines, self._lines = self._lines, []
        for line in lines:
            line.connection.close()
        for line in lines:
            await line.connection.wait_closed()

    async def _free_line(self) -> _Line:
        """Return a connection, with one more channel in use; open one if there is none."""
        while True:
            self._lines = [line for line in self._lines if not line.connection.is_closed()]
            for line in self._lines:
                if line.channels < self._channels_per_line:
                    line.channels += 1
                    return line
            # One login for all that wait for it, also if it fails: they must not try one after the other.
            if self._opening is None:
                self._opening = asyncio.create_task(self._connect())
                self._opening.add_done_callback(self._opened)
            await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
        self._opening = None
        if not opening.cancelled() and not opening.exception():
            self._lines.append(_Line(opening.result()))

    @_login_retry
    async def _log_in(self, settings: LoginSettings) -> asyncssh.SSHClientConnection:
        async with handshakes.turn(self.conn_id), asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            if self._settings is not None:  # a session process, which has no Airflow
                return await asyncssh.connect(**ssh_settings.options(settings))
            from llm_bridge.remote import provider_login

            return await provider_login.log_in(self.conn_id)

    async def _connect(self) -> asyncssh.SSHClientConnection:
        settings = self._settings
        if settings is None:
            from llm_bridge.remote import connections

            settings = await connections.login_settings(self.conn_id)
        try:
            if wrong := ssh_settings.problems(settings):
                raise ConfigError(
                    f"Airflow connection {self.conn_id!r} (Admin > Connections): {'; '.join(wrong)}"
                )
            return await self._log_in(settings)
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
