"""Reach a login node by the one SSH connection that all tasks of this host and user share (``session_process``).

Each Airflow task is a process. With a connection, and a Python on the login node, for each of them, 100 submissions at
once cost ten times the CPU time of 100 submissions by one process. The first task that needs a connection starts the
session process; the others find its socket. What cannot be done by it, or where it cannot run, is done by a connection
of the task's own.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_bridge.exceptions import LoginNodeUnreachable
from llm_bridge.remote import connections, host_folder
from llm_bridge.remote.helper_calls import Calls
from llm_bridge.remote.login_settings import LoginSettings
from llm_bridge.remote.session_protocol import (
    CALL,
    LOG_NAME,
    RUN,
    WITHDRAW,
    StartRequest,
    fits,
    is_own,
    pack,
    read,
    unpack_error,
)
from llm_bridge.remote.transport import Completed, Session, Transport
from llm_bridge.version import VERSION

# Seconds without use after which the session process ends; 0 for a connection for each task.
IDLE_VARIABLE = "LLM_BRIDGE_SESSION_IDLE_SECONDS"
IDLE_SECONDS = 60.0
# For so long at most, a key that was replaced, or a connection that was removed, can be in use.
LIFE_SECONDS = 600.0
# Maximum wait for the start of the process.
START_SECONDS = 30.0
# Maximum wait in its queue; after that a connection of the task's own is as fast.
BEGIN_SECONDS = 30.0
WITHDRAW_SECONDS = 10.0
# Maximum time of the login and of the start of the helpers, before the time that a request itself may take.
LOGIN_SECONDS = 180.0
# After a start that failed, tasks use connections of their own for so long.
FAILED_SECONDS = 60.0
PACKAGE = Path(__file__).parent

log = logging.getLogger(__name__)


class NothingSent(Exception):
    """The session process has ended before it sent anything of the request to the login node."""


def idle_seconds() -> float:
    """Return the time without use after which a session process ends; 0 if tasks do not share connections."""
    try:
        return max(0.0, float(os.environ.get(IDLE_VARIABLE, IDLE_SECONDS)))
    except ValueError:
        return IDLE_SECONDS


def is_possible() -> bool:
    """Return True if tasks of this host can share a connection."""
    return hasattr(socket, "SO_PEERCRED") and idle_seconds() > 0


@dataclass
class Stream:
    """Connection to the session process.

    Attributes:
        reader: Its answers.
        writer: The task's request.
        path: Path of the socket.
        inode: The socket's inode.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    path: Path
    inode: int


class HostSession:
    """Transport and calls of helpers by the session process, or by a connection of its own.

    Args:
        conn_id: Airflow connection of type SSH.
        slurm_bin: Directory of Slurm's commands on the login node; empty for those in PATH.
        login_python: Absolute path of the login node's Python.
        own: Makes a connection of the task's own.
    """

    def __init__(
        self, conn_id: str, slurm_bin: str, login_python: str, own: Callable[[], tuple[Transport, Calls]]
    ) -> None:
        self._conn_id = conn_id
        self._slurm_bin = slurm_bin
        self._login_python = login_python
        self._make_own = own
        self._own: tuple[Transport, Calls] | None = None
        self._settings: LoginSettings | None = None

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command; see :meth:`Transport.run`."""
        request = {"kind": RUN, "argv": list(argv), "stdin": stdin.decode("latin-1"), "timeout": timeout}
        found = await self._ask(request, argv[0], timeout)
        if found is None:
            return await self._transport().run(argv, stdin=stdin, timeout=timeout)
        return Completed(*found["answer"])

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        """Start a program that answers requests, by a connection of its own; see :meth:`Transport.session`."""
        async with self._transport().session(argv) as session:
            yield session

    async def call(self, helper: str, request: dict[str, Any], timeout: float) -> Any:
        """Return a helper's answer; see :meth:`Calls.call`."""
        asked = {"kind": CALL, "helper": helper, "request": request, "timeout": timeout}
        found = await self._ask(asked, helper, timeout)
        if found is None:
            self._transport()
            assert self._own
            return await self._own[1].call(helper, request, timeout)
        return found["answer"]

    async def close(self) -> None:
        """Close the connection of its own, if there is one."""
        if self._own:
            transport, calls = self._own
            self._own = None
            try:
                await calls.close()
            finally:
                await transport.close()

    def _transport(self) -> Transport:
        if self._own is None:
            self._own = self._make_own()
        return self._own[0]

    async def _ask(self, request: dict[str, Any], name: str, timeout: float) -> dict[str, Any] | None:
        """Return the session process's answer; None if it sent nothing of the request to the login node.

        Raises:
            LoginNodeUnreachable: The process ended or gave no answer; the request may have been carried out.
        """
        if self._own:
            return None  # open already
        if self._settings is None:
            self._settings = await connections.login_settings(self._conn_id)
        for _ in range(2):
            stream = await self._connected(self._settings)
            if stream is None:
                return None
            try:
                found = await _exchange(stream, request, timeout)
            except NothingSent:
                continue
            finally:
                stream.writer.close()
            if found and (error := unpack_error(found, name)):
                raise error
            return found
        return None

    async def _connected(self, settings: LoginSettings) -> Stream | None:
        """Return a connection to the session process, which is started if there is none; None if it cannot be."""
        try:
            folder = host_folder.path()
            path = folder / f"session-{self._key(settings)}.sock"
            if not fits(path):
                return None
            place = hashlib.sha256(settings.conn_id.encode()).hexdigest()[:16]
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline:
                if stream := await _open(path):
                    return stream
                with _locked(folder / f"session-{place}.lock") as lock:
                    # Another task may have started it in between.
                    if lock is not None and not (stream := await _open(path)):
                        if not await self._start(path, settings, lock):
                            return None
                        stream = await _open(path)
                if stream:
                    return stream
                await asyncio.sleep(random.uniform(0.01, 0.05))
        except OSError as error:
            log.debug("no session process for connection %r: %s", settings.conn_id, error)
        return None

    async def _start(self, path: Path, settings: LoginSettings, lock: int) -> bool:
        """Start the session process; return False if it does not start, or did not a short time ago."""
        failed = os.fstat(lock)
        if failed.st_size and time.time() - failed.st_mtime < FAILED_SECONDS:
            return False
        asked = StartRequest(
            str(path), settings, self._slurm_bin, self._login_python, idle_seconds(), LIFE_SECONDS
        )
        done = await asyncio.to_thread(_run_program, asked)
        if done is None or done.returncode:
            os.pwrite(lock, b"failed", 0)
            said = (
                done.stderr.decode(errors="replace").strip()[-500:]
                if done
                else f"not in {START_SECONDS:.0f} s"
            )
            log.warning(
                "the session process for connection %r did not start, so each task opens a connection: %s",
                settings.conn_id, said,
            )  # fmt: skip
            return False
        os.ftruncate(lock, 0)
        log.info(
            "started session process %s, which holds the SSH connection %r for the tasks of this host and ends after "
            "%g s without use; its log is %s",
            done.stdout.decode().strip(), settings.conn_id, asked.idle_seconds, path.with_name(LOG_NAME),
        )  # fmt: skip
        return True

    def _key(self, settings: LoginSettings) -> str:
        """Return a hash of all that determines the connection, and of the code that uses it."""
        files = [settings.extra_dejson.get(name) for name in ("key_file", "known_hosts")]
        files += ["~/.ssh/config", "~/.ssh/known_hosts"]
        values = [
            asdict(settings),
            self._slurm_bin,
            self._login_python,
            [_version(Path(str(file)).expanduser()) for file in files if file],
            [os.environ.get(name) for name in ("HOME", "SSH_AUTH_SOCK")],
            [VERSION, sys.executable, str(PACKAGE), *_versions()],
        ]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def _version(path: Path) -> list[Any]:
    try:
        found = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), found.st_mtime_ns, found.st_size, found.st_ino]


def _versions() -> list[list[Any]]:
    """Return what changes with each file of this package: a new version of the code uses a new process."""
    return [_version(path) for folder in (PACKAGE, PACKAGE / "login") for path in sorted(folder.glob("*.py"))]


async def _open(path: Path) -> Stream | None:
    """Return a connection to a socket; None if nobody listens."""
    with suppress(FileNotFoundError, ConnectionRefusedError):
        inode = path.stat().st_ino
        reader, writer = await asyncio.open_unix_connection(str(path))
        if is_own(writer.get_extra_info("socket")):
            return Stream(reader, writer, path, inode)
        writer.close()
        raise PermissionError(f"{path} belongs to another user")
    return None


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Yield a file that is locked for this process; None if another one has locked it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file
    finally:
        os.close(file)


def _run_program(asked: StartRequest) -> subprocess.CompletedProcess[bytes] | None:
    # The process uses no Airflow: neither its settings nor the secrets among them.
    environment = {
        name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")
    }
    paths = [str(PACKAGE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    argv = [sys.executable, "-m", "llm_bridge.remote.session_process"]
    try:
        return subprocess.run(
            argv,
            input=asked.to_json(),
            capture_output=True,
            timeout=START_SECONDS,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return None


async def _exchange(stream: Stream, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
    """Send a request and return its answer; None if it was withdrawn.

    Raises:
        NothingSent: The process has ended before it began the request.
        LoginNodeUnreachable: It ended later, or gave no answer.
    """
    begun = False
    try:
        first = await _begun(stream, request)
        if "withdrawn" in first:
            return None
        begun = True
        async with asyncio.timeout(timeout + LOGIN_SECONDS):
            answer: dict[str, Any] = await read(stream.reader)
            return answer
    except (OSError, EOFError) as error:
        if not begun and not isinstance(error, TimeoutError):
            raise NothingSent from error
        if isinstance(error, TimeoutError):
            # It hangs: later requests start another one.
            with suppress(OSError):
                if stream.path.stat().st_ino == stream.inode:
                    stream.path.unlink()
        raise LoginNodeUnreachable(
            f"the session process of this host {'gave no answer' if isinstance(error, TimeoutError) else 'has ended'}; "
            f"see {stream.path.with_name(LOG_NAME)}"
        ) from error


async def _begun(stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request and return the first frame of the answer; withdraw the request if it has to wait for long."""
    sent = asyncio.ensure_future(_send(stream.writer, request))
    first = asyncio.ensure_future(read(stream.reader))
    try:
        done, _ = await asyncio.wait({first}, timeout=BEGIN_SECONDS)
        if not done:
            stream.writer.write(WITHDRAW)
            done, _ = await asyncio.wait({first}, timeout=WITHDRAW_SECONDS)
        if not done:
            raise TimeoutError
        found: dict[str, Any] = first.result()
        return found
    finally:
        sent.cancel()
        first.cancel()


async def _send(writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
    with suppress(OSError):  # its end is seen by the answer
        writer.write(pack(request))
        await writer.drain()
