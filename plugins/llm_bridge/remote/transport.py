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
from typing import Any, Protocol

from llm_bridge.exceptions import LoginNodeUnreachable
from llm_bridge.remote import login_shell

CONNECT_TIMEOUT_SECONDS = 30

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
        self._errors: Errors = (*errors, EOFError)

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
        except self._errors as error:
            raise LoginNodeUnreachable(f"the helper on the login node has ended: {error}") from error


@functools.cache
def _login_command() -> str:
    """Return ``templates/login_command.sh`` as one line."""
    text = resources.files("llm_bridge.remote").joinpath("templates", "login_command.sh").read_text("utf-8")
    return " ".join(line for line in text.splitlines() if not line.startswith("#"))


# Login nodes whose greeting was logged.
_greeted: set[str] = set()


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
        return ["/bin/sh", "-c", _login_command(), "sh", self.slurm_bin, self.marker, *argv]

    def command_line(self, argv: Sequence[str]) -> str:
        """Return that command line quoted for a shell."""
        return shlex.join(self.argv(argv))

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
        while (line := text_of(await reader.readline())).rstrip("\n") != self.marker:
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


class LocalTransport:
    """Transport for an Airflow that runs on the login node: commands are child processes of the user's login shell.

    Args:
        slurm_bin: Directory of Slurm's commands; empty for those in PATH.
    """

    def __init__(self, slurm_bin: str = "") -> None:
        self._wrap = CleanCommand("this machine", slurm_bin, new_marker())

    async def _start(self, argv: Sequence[str], stderr: int) -> asyncio.subprocess.Process:
        (program, *arguments), options = login_shell.arguments(self._wrap.command_line(argv))
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            program, *arguments, stdin=pipe, stdout=pipe, stderr=stderr, **options
        )

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command; see :meth:`Transport.run`."""
        try:
            process = await self._start(argv, asyncio.subprocess.PIPE)
        except OSError as error:
            return Completed(127, "", f"{argv[0]}: {error}")
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate(stdin)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise LoginNodeUnreachable(f"`{argv[0]}` gave no answer within {timeout:.0f} s") from None
        return self._wrap.output(Completed(process.returncode or 0, text_of(out), text_of(err)))

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        """Start a program that answers requests; see :meth:`Transport.session`."""
        process = await self._start(argv, asyncio.subprocess.DEVNULL)
        try:
            yield await started(self._wrap, process.stdin, process.stdout)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

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
        LoginNodeUnreachable: The program has not started.
    """
    failed: Errors = (*errors, ValueError, TimeoutError)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await wrap.skip_greeting(reader)
    except failed as error:
        raise LoginNodeUnreachable(
            f"the login shell of {wrap.login} did not start the helper: {error or type(error).__name__}"
        ) from error
    return Session(writer, reader, errors)


def text_of(data: bytes | str | None) -> str:
    """Return output of a command as text; bytes that are not UTF-8 are replaced."""
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else data or ""
