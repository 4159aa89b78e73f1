"""Run commands on a cluster's login node: over SSH, or locally when Airflow itself runs there.

This is the only module that quotes a command line. Callers pass ``argv`` lists and bytes for standard input; all user
input is sent on standard input.

Every command runs through ``templates/login_command.sh``: without the variables that steer Slurm's commands, and with a
marker before its output, so that a greeting of the login shell is not part of it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import asyncssh
from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.ssh.hooks.ssh import SSHHookAsync
from airflow.sdk.exceptions import AirflowNotFoundException
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from llm_bridge.exceptions import ConfigError, LoginDenied, LoginNodeUnreachable, NoConnection
from llm_bridge.remote import ssh_settings

if TYPE_CHECKING:
    from llm_bridge.config.cluster import Cluster

# Limit of concurrent channels per connection; sshd's default MaxSessions is 10.
MAX_CHANNELS = 8
CONNECT_TIMEOUT_SECONDS = 30

log = logging.getLogger(__name__)

# Maximum number of characters of a greeting to quote.
MAX_GREETING_LENGTH = 300

# At INFO asyncssh logs every command and channel to the task's log.
asyncssh.set_log_level("WARNING")


class CommandFailed(RuntimeError):
    """A command on the login node ended with a non-zero exit code.

    Args:
        argv: The command.
        done: Its exit code and output.
    """

    def __init__(self, argv: Sequence[str], done: Completed) -> None:
        self.done = done
        output = done.stderr.strip() or done.stdout.strip() or "(no output)"
        super().__init__(f"`{argv[0]}` on the login node ended with exit code {done.code}: {output[-2000:]}")


@dataclass(frozen=True)
class Completed:
    """Exit code and output of a command.

    Attributes:
        code: Exit code.
        stdout: Standard output.
        stderr: Standard error.
    """

    code: int
    stdout: str
    stderr: str


class Transport(Protocol):
    """Connection to the login node."""

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command and wait for its end.

        Args:
            argv: The command.
            stdin: Its standard input.
            timeout: Maximum seconds to wait.

        Raises:
            LoginNodeUnreachable: There is no connection, it broke, or the command did not end within the timeout.
        """

    def session(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Session]:
        """Start a program that keeps running and answers requests (``remote/login/poll_jobs.py``); use ``async with``.

        Raises:
            LoginNodeUnreachable: There is no connection.
        """

    async def close(self) -> None:
        """Close the connection."""


class Session:
    """Session with a program on the login node that answers each line it reads.

    An answer is its length in bytes as 8 digits, followed by its content.
    """

    def __init__(self, writer: Any, reader: Any) -> None:
        self._writer = writer
        self._reader = reader

    def send(self, line: bytes) -> None:
        """Send a line that gets no answer."""
        self._writer.write(line + b"\n")

    async def ask(self, line: bytes, timeout: float = 60) -> bytes:
        """Send a line and return its answer.

        Args:
            line: Request without its line end.
            timeout: Maximum seconds to wait.

        Raises:
            LoginNodeUnreachable: No answer within the timeout, or the program has ended; the session is unusable then.
        """
        try:
            async with asyncio.timeout(timeout):
                self.send(line)
                await self._writer.drain()
                length = await self._reader.readexactly(8)
                answer: bytes = await self._reader.readexactly(int(length))
                return answer
        except TimeoutError:
            raise LoginNodeUnreachable(
                f"the helper on the login node gave no answer within {timeout:.0f} s"
            ) from None
        except (asyncssh.Error, OSError, EOFError) as error:
            raise LoginNodeUnreachable(f"the helper on the login node has ended: {error}") from error


@functools.cache
def _login_command() -> str:
    """Return ``templates/login_command.sh`` as one line."""
    text = resources.files("llm_bridge.remote").joinpath("templates", "login_command.sh").read_text("utf-8")
    return " ".join(line for line in text.splitlines() if not line.startswith("#"))


# Login nodes whose greeting was logged.
_greeted: set[str] = set()


@dataclass(frozen=True)
class _CleanCommand:
    """Wrapper that runs commands in a clean environment, and separates their output from a greeting.

    Args:
        login: Description of the login node for messages.
        slurm_bin: Directory of Slurm's commands; empty for those in PATH.
        marker: Line before the output of a command.
    """

    login: str
    slurm_bin: str
    marker: str

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command."""
        return ["/bin/sh", "-c", _login_command(), "sh", self.slurm_bin, self.marker, *argv]

    def output(self, done: Completed) -> Completed:
        """Return a command's output without the text before the marker.

        Raises:
            LoginNodeUnreachable: There is no marker, so the command has not run.
        """
        before, marker, after = f"\n{done.stdout}".partition(f"\n{self.marker}\n")
        if not marker:
            raise self.not_run(done.stdout + done.stderr)
        self.greeting(before)
        return Completed(done.code, after, done.stderr)

    async def skip_greeting(self, reader: Any) -> None:
        """Read the text up to the marker from a session's standard output.

        Raises:
            LoginNodeUnreachable: There is no marker, so the program has not started.
        """
        lines: list[str] = []
        while (line := _text(await reader.readline())).rstrip("\n") != self.marker:
            lines.append(line)
            if not line:
                raise self.not_run("".join(lines))
        self.greeting("".join(lines))

    def not_run(self, output: str) -> LoginNodeUnreachable:
        """Return the error for a login shell that did not run a command."""
        said = output.strip()[-MAX_GREETING_LENGTH:] or "(nothing)"
        return LoginNodeUnreachable(
            f"the login shell of {self.login} ran no command; it printed: {said}. Check that `ssh LOGIN_NODE true` "
            "works, and what the shell's start files do without a terminal"
        )

    def greeting(self, text: str) -> None:
        """Log once what a login shell prints before each command's output."""
        if text.strip() and self.login not in _greeted:
            _greeted.add(self.login)
            log.info(
                "the login shell of %s prints this before each answer, which is skipped: %s",
                self.login, text.strip()[:MAX_GREETING_LENGTH],
            )  # fmt: skip


# A refused channel is safe to retry, because nothing has run yet. sshd counts a session until its process has ended, so
# it refuses channels also in a burst just below MaxSessions.
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
async def _start(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess[bytes]:
    return await connection.create_process(command, encoding=None, stderr=asyncssh.DEVNULL)


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
        self._wrap = _CleanCommand(repr(conn_id), slurm_bin, _new_marker())
        self._connection: asyncssh.SSHClientConnection | None = None
        self._opening = asyncio.Lock()
        self._channels = asyncio.Semaphore(MAX_CHANNELS)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command; see :meth:`Transport.run`."""
        async with self._channels:
            connection = await self._connected()
            try:
                # asyncssh's own timeout is asyncio.wait_for, which in Python 3.11 can swallow a cancellation.
                async with asyncio.timeout(timeout):
                    command = shlex.join(self._wrap.argv(argv))
                    done = await _run(connection, command, input=stdin, encoding=None)
            except TimeoutError:
                raise LoginNodeUnreachable(
                    f"`{argv[0]}` gave no answer within {timeout:.0f} s on the login node of {self.conn_id!r}"
                ) from None
            except (asyncssh.Error, OSError) as error:
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while running `{argv[0]}`: {error}"
                ) from error
        # None: the session ended without an exit status, for example because sshd was killed. The provider's own
        # run_command returns 0 then.
        if done.exit_status is None or done.exit_status < 0:
            raise LoginNodeUnreachable(f"the SSH session {self.conn_id!r} ended in the middle of `{argv[0]}`")
        return self._wrap.output(Completed(done.exit_status, _text(done.stdout), _text(done.stderr)))

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        """Start a program that answers requests; see :meth:`Transport.session`."""
        async with self._channels:
            connection = await self._connected()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    process = await _start(connection, shlex.join(self._wrap.argv(argv)))
            except (asyncssh.Error, OSError, TimeoutError) as error:
                raise LoginNodeUnreachable(
                    f"the SSH connection {self.conn_id!r} broke while starting `{argv[0]}`: {error}"
                ) from error
            try:
                yield await _started(self._wrap, process.stdin, process.stdout)
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
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                connection: asyncssh.SSHClientConnection = await hook.get_conn()  # type: ignore[no-untyped-call]
                return connection
        except asyncssh.HostKeyNotVerifiable as error:
            raise ConfigError(
                f"the login node of {self.conn_id!r} presented a host key that is not trusted ({error}): "
                f"{ssh_settings.trusted(settings)}. Compare the fingerprint that `ssh-keyscan HOST | ssh-keygen -lf -` "
                "shows with the one that your administrators publish; then, in the connection's extra 'host_key', "
                f"{ssh_settings.HOST_KEY_FORM}"
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


class LocalTransport:
    """Transport for an Airflow that runs on the login node: commands are child processes.

    Args:
        slurm_bin: Directory of Slurm's commands; empty for those in PATH.
    """

    def __init__(self, slurm_bin: str = "") -> None:
        self._wrap = _CleanCommand("this machine", slurm_bin, _new_marker())

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command; see :meth:`Transport.run`."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._wrap.argv(argv),
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
        return self._wrap.output(Completed(process.returncode or 0, _text(out), _text(err)))

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        """Start a program that answers requests; see :meth:`Transport.session`."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._wrap.argv(argv), stdin=pipe, stdout=pipe)
        try:
            yield await _started(self._wrap, process.stdin, process.stdout)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def close(self) -> None:
        """Do nothing: there is no connection."""
        return None


@dataclass
class _SharedTransport:
    """A transport, and the number of its users."""

    transport: Transport
    users: int = 0


# One connection per cluster and event loop for all tasks and triggers: of 60 concurrent new connections, 22 failed
# because of sshd's MaxStartups.
_open: dict[tuple[int, str, str], _SharedTransport] = {}


@asynccontextmanager
async def connect(cluster: Cluster) -> AsyncIterator[Transport]:
    """Open the shared transport to ``cluster``'s login node; it is closed after its last use."""
    conn_id, slurm_bin = cluster.ssh_conn_id, cluster.slurm_bin or ""
    key = (id(asyncio.get_running_loop()), conn_id or "", slurm_bin)
    shared = _open.get(key)
    if shared is None:
        transport = SshTransport(conn_id, slurm_bin) if conn_id else LocalTransport(slurm_bin)
        shared = _open[key] = _SharedTransport(transport)
    shared.users += 1
    try:
        yield shared.transport
    finally:
        shared.users -= 1
        if not shared.users:
            _open.pop(key, None)
            await shared.transport.close()


async def checked(
    transport: Transport, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60
) -> str:
    """Run a command and return its standard output.

    Args:
        transport: Connection to the login node.
        argv: The command.
        stdin: Its standard input.
        timeout: Maximum seconds to wait.

    Raises:
        CommandFailed: It ended with a non-zero exit code.
        LoginNodeUnreachable: There is no connection, it broke, or the command did not end within the timeout.
    """
    done = await transport.run(argv, stdin=stdin, timeout=timeout)
    if done.code:
        raise CommandFailed(argv, done)
    return done.stdout


def _new_marker() -> str:
    return f"llm-bridge-{secrets.token_hex(8)}"


async def _started(wrap: _CleanCommand, writer: Any, reader: Any) -> Session:
    """Return the session with a program, once the program has started."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await wrap.skip_greeting(reader)
    except (asyncssh.Error, OSError, ValueError, TimeoutError) as error:
        raise LoginNodeUnreachable(
            f"the login shell of {wrap.login} did not start the helper: {error or type(error).__name__}"
        ) from error
    return Session(writer, reader)


def _text(data: bytes | str | None) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else data or ""
