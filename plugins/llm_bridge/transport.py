"""Commands on a cluster's login node: over SSH, or locally when Airflow itself runs there.

The only place where a command line is quoted. Callers pass ``argv`` lists and bytes for standard input;
anything that a user typed travels as standard input.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import asyncssh
from airflow.exceptions import AirflowNotFoundException
from airflow.providers.ssh.hooks.ssh import SSHHookAsync
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from llm_bridge.config.errors import ConfigError

if TYPE_CHECKING:
    from llm_bridge.config.cluster import Cluster

# sshd's default MaxSessions is 10.
MAX_CHANNELS = 8
CONNECT_SECONDS = 30

# At INFO asyncssh writes every command and channel into the task's log.
asyncssh.set_log_level("WARNING")


class LoginNodeUnreachable(ConnectionError):
    """The login node did not answer, or the connection broke. Says nothing about any job."""


class LoginRefused(LoginNodeUnreachable):
    """The login node refused user or key. In a run that has worked before, that is its directory service's outage
    more often than a changed key, so it is waited for like any other.
    """


class NoConnection(ConfigError):
    """Airflow has no connection to the cluster."""


class CommandFailed(RuntimeError):
    """A command on the login node ended with a non-zero exit code."""

    def __init__(self, argv: Sequence[str], done: Completed) -> None:
        self.done = done
        said = done.stderr.strip() or done.stdout.strip() or "(it printed nothing)"
        super().__init__(f"`{argv[0]}` on the login node ended with exit code {done.code}: {said[-2000:]}")


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class Transport(Protocol):
    """A way to the login node."""

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run ``argv`` and wait for it, at most ``timeout`` seconds.

        :raises LoginNodeUnreachable: no connection, or it broke before the command ended.
        """

    def session(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Session]:
        """``async with`` it: a program that stays there and answers requests (``include/login/watch.py``).

        :raises LoginNodeUnreachable: no connection.
        """

    async def close(self) -> None:
        """End the connection."""


class Session:
    """A program on the login node that reads a line and answers with 8 digits of length and so many bytes."""

    def __init__(self, writer: Any, reader: Any) -> None:
        self._writer = writer
        self._reader = reader

    def tell(self, line: bytes) -> None:
        """Send a line that gets no answer."""
        self._writer.write(line + b"\n")

    async def ask(self, line: bytes, timeout: float = 60) -> bytes:
        """Send a line and wait for its answer.

        :raises LoginNodeUnreachable: none came in time, or the program has ended. The session is then of no more use.
        """
        try:
            async with asyncio.timeout(timeout):
                self.tell(line)
                await self._writer.drain()
                length = await self._reader.readexactly(8)
                return await self._reader.readexactly(int(length))
        except TimeoutError:
            raise LoginNodeUnreachable(
                f"the helper on the login node gave no answer within {timeout:.0f} s"
            ) from None
        except (asyncssh.Error, OSError, EOFError) as error:
            raise LoginNodeUnreachable(f"the helper on the login node has ended: {error}") from error


# A refused channel is asked for again, since nothing has run yet: sshd counts a session until its process is gone,
# so a burst just below MaxSessions is refused too.
_channel_retry = retry(
    retry=retry_if_exception_type(asyncssh.ChannelOpenError),
    wait=wait_random(0.05, 0.5),
    stop=stop_after_attempt(8),
    reraise=True,
)


@_channel_retry
async def _run(
    connection: asyncssh.SSHClientConnection, command: str, **options: Any
) -> asyncssh.SSHCompletedProcess:
    return await connection.run(command, check=False, **options)


@_channel_retry
async def _start(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess:
    return await connection.create_process(command, encoding=None, stderr=asyncssh.DEVNULL)


class _StrictHook(SSHHookAsync):
    """The provider's hook, without its way around the host key."""

    def _parse_extras(self, conn: Any) -> None:
        super()._parse_extras(conn)
        if self.known_hosts == "none":
            raise ConfigError(
                f"connection {self.ssh_conn_id!r} sets no_host_key_check: whoever answers for the login node would get "
                "the Hub's token. Put the login node's key into the extra 'host_key' or a known_hosts file instead"
            )


class SshTransport:
    """One SSH connection, opened when first needed and again when it is lost; at most 8 channels at once.

    The provider's hook has asyncssh send a keepalive every 30 s, and reads ``~/.ssh/config``: ``ProxyJump``
    belongs there.
    """

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._connection: asyncssh.SSHClientConnection | None = None
        self._opening = asyncio.Lock()
        self._channels = asyncio.Semaphore(MAX_CHANNELS)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        async with self._channels:
            connection = await self._connected()
            try:
                # asyncssh's own timeout is asyncio.wait_for, which in Python 3.11 can swallow a cancellation.
                async with asyncio.timeout(timeout):
                    done = await _run(connection, shlex.join(argv), input=stdin, encoding=None)
            except TimeoutError:
                raise LoginNodeUnreachable(
                    f"`{argv[0]}` gave no answer within {timeout:.0f} s on the login node of {self.conn_id!r}"
                ) from None
            except (asyncssh.Error, OSError) as error:
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while running `{argv[0]}`: {error}"
                ) from error
        # None: the session ended without an exit status, as when sshd is killed. The provider's own
        # run_command reads that as 0.
        if done.exit_status is None or done.exit_status < 0:
            raise LoginNodeUnreachable(f"the SSH session {self.conn_id!r} ended in the middle of `{argv[0]}`")
        return Completed(done.exit_status, _text(done.stdout), _text(done.stderr))

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        async with self._channels:
            connection = await self._connected()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    process = await _start(connection, shlex.join(argv))
            except (asyncssh.Error, OSError, TimeoutError) as error:
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while starting `{argv[0]}`: {error}"
                ) from error
            try:
                yield Session(process.stdin, process.stdout)
            finally:
                process.close()

    async def close(self) -> None:
        if self._connection:
            self._connection.close()
            await self._connection.wait_closed()
            self._connection = None

    async def _connected(self) -> asyncssh.SSHClientConnection:
        async with self._opening:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> asyncssh.SSHClientConnection:
        hook = _StrictHook(ssh_conn_id=self.conn_id)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await hook.get_conn()
        except AirflowNotFoundException:
            raise NoConnection(
                f"Airflow has no connection {self.conn_id!r}: create it (Admin > Connections, type SSH) or set "
                "ssh_conn_id in the cluster file to one that exists"
            ) from None
        except asyncssh.HostKeyNotVerifiable as error:
            raise ConfigError(
                f"the login node of {self.conn_id!r} showed a host key that is not trusted ({error}): compare it with "
                "what your administrator says, then put it into the connection's extra 'host_key' or known_hosts file"
            ) from None
        except asyncssh.PermissionDenied as error:
            raise LoginRefused(
                f"the login node of {self.conn_id!r} refused the login ({error}): check user and key of the connection"
            ) from None
        except (asyncssh.KeyImportError, FileNotFoundError) as error:
            raise ConfigError(
                f"the key or known_hosts file of connection {self.conn_id!r} is unusable: {error}"
            ) from None
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise LoginNodeUnreachable(
                f"no SSH connection {self.conn_id!r}: {error or type(error).__name__}"
            ) from error


class LocalTransport:
    """Airflow runs on the login node: commands are plain child processes."""

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            return Completed(127, "", f"{argv[0]}: {error}")
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate(stdin)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise LoginNodeUnreachable(f"`{argv[0]}` gave no answer within {timeout:.0f} s") from None
        return Completed(process.returncode or 0, _text(out), _text(err))

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
        try:
            yield Session(process.stdin, process.stdout)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def close(self) -> None:
        return None


# One connection a cluster and event loop, however many tasks or triggers use it: 60 fresh connections at
# once lose 22 to sshd's MaxStartups. [transport, users]
_open: dict[tuple[int, str], list] = {}


@asynccontextmanager
async def connect(cluster: Cluster) -> AsyncIterator[Transport]:
    """The shared way to ``cluster``'s login node; the connection ends with its last user."""
    key = (id(asyncio.get_running_loop()), cluster.ssh_conn_id or "")
    entry = _open.get(key)
    if entry is None:
        transport = SshTransport(cluster.ssh_conn_id) if cluster.ssh_conn_id else LocalTransport()
        entry = _open[key] = [transport, 0]
    entry[1] += 1
    try:
        yield entry[0]
    finally:
        entry[1] -= 1
        if not entry[1]:
            _open.pop(key, None)
            await entry[0].close()


async def checked(
    transport: Transport, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60
) -> str:
    """Standard output of ``argv``.

    :raises CommandFailed: it ended with a non-zero exit code.
    """
    done = await transport.run(argv, stdin=stdin, timeout=timeout)
    if done.code:
        raise CommandFailed(argv, done)
    return done.stdout


def _text(data: bytes | str | None) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else data or ""
