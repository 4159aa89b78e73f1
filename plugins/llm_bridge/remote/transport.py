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
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from llm_bridge.exceptions import LoginNodeUnreachable, LoginShellFailed
from llm_bridge.remote import login_shell

CONNECT_TIMEOUT_SECONDS = 30
# Maximum wait for the end of a process that was killed.
KILL_SECONDS = 10.0
# Description of the login node where Airflow runs on it.
THIS_MACHINE = "this machine"

log = logging.getLogger(__name__)

# Maximum number of characters of a greeting to quote.
MAX_GREETING_LENGTH = 300


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


class NotStarted(LoginNodeUnreachable):
    """The login shell did not start a session's program, for a reason that running a command may report better."""


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


Errors = tuple[type[Exception], ...]


class Session:
    """Session with a program on the login node that answers each line it reads.

    An answer is its length in bytes as 8 digits, followed by its content.

    Args:
        writer: Standard input of the program.
        reader: Standard output of the program.
        errors: Exceptions that reader and writer raise when the connection breaks.
    """

    def __init__(self, writer: Any, reader: Any, errors: Errors = (OSError,)) -> None:
        self._writer = writer
        self._reader = reader
        # ValueError: in place of a length, what a forced command of sshd prints after the program's end.
        self._errors: Errors = (*errors, EOFError, ValueError)

    def send(self, line: bytes) -> None:
        """Send a line that gets no answer.

        Raises:
            LoginNodeUnreachable: The program has ended.
        """
        try:
            self._writer.write(line + b"\n")
        except self._errors as error:
            raise LoginNodeUnreachable(f"the helper on the login node has ended: {error}") from error

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
                await self.post(line)
                return await self.receive()
        except TimeoutError:
            raise LoginNodeUnreachable(
                f"the helper on the login node gave no answer within {timeout:.0f} s"
            ) from None

    async def post(self, line: bytes) -> None:
        """Send a line whose answer :meth:`receive` returns at some time.

        Raises:
            LoginNodeUnreachable: The program has ended.
        """
        try:
            self.send(line)
            await self._writer.drain()
        except self._errors as error:
            raise LoginNodeUnreachable(f"the helper on the login node has ended: {error}") from error

    async def receive(self) -> bytes:
        """Return the next answer.

        Raises:
            LoginNodeUnreachable: The program has ended.
        """
        try:
            length = await self._reader.readexactly(8)
            answer: bytes = await self._reader.readexactly(int(length))
            return answer
        except self._errors as error:
            raise LoginNodeUnreachable(f"the helper on the login node has ended: {error}") from error


@functools.cache
def _one_line(template: str) -> str:
    """Return a script in ``templates`` as one line."""
    text = resources.files("llm_bridge.remote").joinpath("templates", template).read_text("utf-8")
    return " ".join(line for line in text.splitlines() if not line.startswith("#"))


# Login node -> what its login shell prints before each answer.
greetings: dict[str, str] = {}


@dataclass(frozen=True)
class CleanCommand:
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
        return ["/bin/sh", "-c", _one_line("login_command.sh"), "sh", self.slurm_bin, self.marker, *argv]

    def command_line(self, argv: Sequence[str]) -> str:
        """Return that command line quoted for a shell."""
        return shlex.join(self.argv(argv))

    async def run(
        self, started: AbstractAsyncContextManager[Any], name: str, stdin: bytes, timeout: float
    ) -> tuple[int | None, str, str]:
        """Wait for a command's end, and return its exit code and its output, without a greeting.

        Standard input is sent once the command itself runs. A start file of the login shell that reads input, or that
        replaces the shell (``exec zsh``), does not get it: there, values in it would be commands.

        Args:
            started: Starts the process in its block, with pipes, and ends it after the block. Its process is one of
                asyncio or of asyncssh.
            name: Name of the command for messages.
            stdin: The command's standard input.
            timeout: Maximum seconds to wait.

        Returns:
            Exit code, or None if the connection broke; standard output; standard error.

        Raises:
            LoginNodeUnreachable: The login shell ran no command, or there is no end within the timeout.
        """
        late = (
            f"the login shell of {self.login} did not run `{name}` within {timeout:.0f} s. A start file, such as "
            "~/.bashrc, may wait, read standard input or replace the shell (exec): let it do so only in a terminal "
            "([[ $- == *i* ]])"
        )
        runs = False
        try:
            async with asyncio.timeout(timeout), started as process:
                errors = asyncio.ensure_future(process.stderr.read())
                try:
                    before, runs = await self._until_marker(process.stdout)
                    late = f"`{name}` gave no answer within {timeout:.0f} s on the login node of {self.login}"
                    _, out = await asyncio.gather(
                        _feed(process.stdin, stdin if runs else b""), process.stdout.read()
                    )
                    err = text_of(await errors)
                    await process.wait()
                finally:
                    errors.cancel()
        except TimeoutError:
            raise (LoginNodeUnreachable if runs else LoginShellFailed)(late) from None
        if runs:
            self.greeting(before)
        elif process.returncode is not None:
            raise self.not_run(before + err)
        return process.returncode, text_of(out), err

    async def skip_greeting(self, reader: Any) -> None:
        """Read the text up to the marker from a session's standard output.

        Raises:
            LoginNodeUnreachable: There is no marker, so the program has not started.
        """
        before, runs = await self._until_marker(reader)
        if not runs:
            raise self.not_run(before)
        self.greeting(before)

    async def _until_marker(self, reader: Any) -> tuple[str, bool]:
        """Return the text before the marker, and False if the output ended without one."""
        lines: list[str] = []
        while (line := text_of(await reader.readline())).rstrip("\n") != self.marker:
            lines.append(line)
            if not line:
                return "".join(lines), False
        return "".join(lines), True

    def not_run(self, output: str) -> LoginNodeUnreachable:
        """Return the error for a login shell that did not run a command."""
        said = output.strip()[-MAX_GREETING_LENGTH:] or "(nothing)"
        return LoginShellFailed(
            f"the login shell of {self.login} ran no command; it printed: {said}. Check that `ssh LOGIN_NODE true` "
            "works, and what the shell's start files do without a terminal"
        )

    def greeting(self, text: str) -> None:
        """Log once what a login shell prints before each command's output."""
        if text.strip() and self.login not in greetings:
            greetings[self.login] = text.strip()[:MAX_GREETING_LENGTH]
            log.info(
                "the login shell of %s prints this before each answer, which is skipped: %s",
                self.login, greetings[self.login],
            )  # fmt: skip


class LocalTransport:
    """Transport for an Airflow that runs on the login node: commands are child processes of the user's login shell.

    Args:
        slurm_bin: Directory of Slurm's commands; empty for those in PATH.
    """

    def __init__(self, slurm_bin: str = "") -> None:
        self._wrap = CleanCommand(THIS_MACHINE, slurm_bin, new_marker())

    @asynccontextmanager
    async def _process(self, argv: Sequence[str], stderr: int) -> AsyncIterator[asyncio.subprocess.Process]:
        (program, *arguments), options = login_shell.arguments(self._wrap.command_line(argv))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdin=pipe, stdout=pipe, stderr=stderr, **options
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            # Not longer: a process in an uninterruptible sleep (state D, a file server that hangs) is not killed.
            with suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await process.wait()

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command; see :meth:`Transport.run`."""
        started = self._process(argv, asyncio.subprocess.PIPE)
        try:
            code, out, err = await self._wrap.run(started, argv[0], stdin, timeout)
        except LoginNodeUnreachable:
            raise
        except OSError as error:  # no memory, too many processes
            raise LoginNodeUnreachable(f"`{argv[0]}` cannot be started on this machine: {error}") from error
        return Completed(code or 0, out, err)

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        """Start a program that answers requests; see :meth:`Transport.session`."""
        async with AsyncExitStack() as stack:
            try:
                process = await stack.enter_async_context(self._process(argv, asyncio.subprocess.DEVNULL))
            except OSError as error:  # no memory, too many processes
                raise NotStarted(f"`{argv[0]}` cannot be started on this machine: {error}") from error
            yield await started(self._wrap, process.stdin, process.stdout)

    async def close(self) -> None:
        """Do nothing: there is no connection."""
        return None


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


async def find_programs(transport: Transport, names: Sequence[str]) -> dict[str, str]:
    """Return the paths of programs in PATH on the login node, by name; those that are not there are missing.

    Args:
        transport: Connection to the login node.
        names: The programs.

    Raises:
        LoginNodeUnreachable: There is no connection.
    """
    done = await transport.run(["/bin/sh", "-c", _one_line("find_programs.sh"), "sh", *names])
    # A name alone is a function of the login shell, which no program can run.
    return {line.rpartition("/")[2]: line for line in done.stdout.splitlines() if line.startswith("/")}


def new_marker() -> str:
    """Return a line that no greeting has, for :class:`CleanCommand`."""
    return f"llm-bridge-{secrets.token_hex(8)}"


async def started(wrap: CleanCommand, writer: Any, reader: Any, errors: Errors = (OSError,)) -> Session:
    """Return the session with a program, once the program has started.

    Args:
        wrap: Wrapper that the program was started with.
        writer: Standard input of the program.
        reader: Standard output of the program.
        errors: Exceptions that reader and writer raise when the connection breaks.

    Raises:
        NotStarted: The program has not started.
    """
    failed: Errors = (*errors, ValueError, TimeoutError)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await wrap.skip_greeting(reader)
    except failed as error:
        raise NotStarted(
            f"the login shell of {wrap.login} did not start the helper: {error or type(error).__name__}"
        ) from error
    return Session(writer, reader, errors)


async def _feed(writer: Any, data: bytes) -> None:
    """Write all of a process's standard input."""
    with suppress(OSError):  # it has ended, or does not read its input
        if data:
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def text_of(data: bytes | str | None) -> str:
    """Return output of a command as text; bytes that are not UTF-8 are replaced."""
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else data or ""
