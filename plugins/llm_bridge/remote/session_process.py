"""Hold one SSH connection to a login node for the tasks of an Airflow host and user; ``host_session`` starts it.

What OpenSSH calls ControlPersist. The process gets a StartRequest on standard input, makes the socket, and goes to the
background; it prints its id when the socket accepts connections. It ends after some seconds without a request, some
minutes after its start, or when its socket is removed. Requests in work are completed first.

It imports no Airflow and has the connection's secrets in its memory only: they are in no file, argument or environment,
and the kernel neither dumps it nor lets another process of the user trace it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_bridge.remote.messages import SERVED_AT_ONCE
from llm_bridge.remote.session_protocol import (
    BEGUN,
    CALL,
    LOG_NAME,
    WITHDRAW,
    WITHDRAWN,
    StartRequest,
    is_own,
    pack,
    pack_error,
    read,
)

# Maximum time for requests in work after the process accepts no more, above any of their timeouts.
MAX_DRAIN_SECONDS = 600.0
CLOSE_SECONDS = 10.0
MAX_LOG_BYTES = 1_000_000

log = logging.getLogger("session")


class SessionServer:
    """Answers requests by one connection and one helper process on the login node.

    Args:
        asked: The request to start.
    """

    def __init__(self, asked: StartRequest) -> None:
        # Takes a while to import, and the socket accepts connections already.
        from llm_bridge.remote.helper_calls import HelperCalls
        from llm_bridge.remote.ssh_transport import MAX_CHANNELS, SshTransport

        self._asked = asked
        self._transport = SshTransport(asked.settings.conn_id, asked.slurm_bin, asked.settings)
        self._calls = HelperCalls(self._transport, asked.login_python)
        self._calls_at_once = asyncio.Semaphore(SERVED_AT_ONCE)
        self._runs_at_once = asyncio.Semaphore(MAX_CHANNELS - 1)  # the helper process has a channel, too
        self._open: set[asyncio.Task[None]] = set()
        self._used = time.monotonic()
        self._count = 0

    async def serve(self, listening: socket.socket, inode: int) -> str:
        """Answer requests until there is a reason to end; return the reason.

        Args:
            listening: The socket.
            inode: Inode of its path.
        """
        path, began = Path(self._asked.socket), time.monotonic()
        server = await asyncio.start_unix_server(self._accept, sock=listening)
        pause = min(0.5, self._asked.idle_seconds / 4)
        while not (reason := self._reason_to_end(path, inode, began)):
            await asyncio.sleep(pause)
        if _inode(path) == inode:
            path.unlink(missing_ok=True)
        server.close()
        await asyncio.sleep(0)  # connections that were accepted meanwhile
        if self._open:
            await asyncio.wait(self._open, timeout=MAX_DRAIN_SECONDS)
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._calls.close()
                await self._transport.close()
        return f"{reason}, after {self._count} request(s)"

    def _reason_to_end(self, path: Path, inode: int, began: float) -> str:
        now = time.monotonic()
        if _inode(path) != inode:
            return "its socket was removed"
        if now - began > self._asked.life_seconds:
            return f"started {self._asked.life_seconds:g} s ago"
        if not self._open and now - self._used > self._asked.idle_seconds:
            return f"no request for {self._asked.idle_seconds:g} s"
        return ""

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._used = time.monotonic()
        if not task.cancelled() and (error := task.exception()):
            log.error("request failed: %r", error)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left: asyncio.Future[Any] | None = None
        try:
            if not is_own(writer.get_extra_info("socket")):
                return
            request = await read(reader)
            self._count += 1
            at_once = self._calls_at_once if request["kind"] == CALL else self._runs_at_once
            turn = asyncio.ensure_future(at_once.acquire())
            left = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({turn, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                if not turn.cancel():
                    at_once.release()
                writer.write(pack(WITHDRAWN))
                return
            try:
                writer.write(pack(BEGUN))
                answer = await self._work(request, left, reader)
            finally:
                at_once.release()
            writer.write(pack(answer))
            await writer.drain()
        except (OSError, EOFError):  # the task has ended
            return
        finally:
            if left:
                left.cancel()
            writer.close()

    async def _work(
        self, request: dict[str, Any], left: asyncio.Future[Any], reader: asyncio.StreamReader
    ) -> Any:
        """Return the answer to a request. A command whose task has ended is ended, as with a connection of its own."""
        if request["kind"] == CALL:
            return await self._result(request)
        work = asyncio.ensure_future(self._result(request))
        ended = asyncio.ensure_future(_ended(left, reader))
        try:
            await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise EOFError
            return work.result()
        finally:
            work.cancel()
            ended.cancel()
            await asyncio.wait({work})

    async def _result(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if request["kind"] == CALL:
                return {
                    "answer": await self._calls.call(
                        request["helper"], request["request"], request["timeout"]
                    )
                }
            stdin = request["stdin"].encode("latin-1")
            done = await self._transport.run(request["argv"], stdin=stdin, timeout=request["timeout"])
            return {"answer": [done.code, done.stdout, done.stderr]}
        except Exception as error:
            return pack_error(error)


async def _ended(left: asyncio.Future[Any], reader: asyncio.StreamReader) -> None:
    """Return when the task has closed its end."""
    byte = await asyncio.shield(left)
    while byte == WITHDRAW:  # too late
        byte = await reader.read(1)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _keep_secrets() -> None:
    """Forbid core dumps and tracing: the connection's secrets are in this process's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _listen(path: Path, life_seconds: float) -> socket.socket:
    path.unlink(missing_ok=True)  # of a process that was killed
    for other in path.parent.glob("session-*.sock"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > life_seconds + MAX_DRAIN_SECONDS:
                other.unlink()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(1024)
    os.umask(0o077)
    return listening


def _open_log(path: Path) -> int:
    with suppress(OSError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.unlink()
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def main() -> None:
    """Start the process; the one that was called ends when the one in the background accepts connections."""
    os.umask(0o177)
    _keep_secrets()
    asked = StartRequest.from_json(sys.stdin.buffer.read())
    path = Path(asked.socket)
    log_file = _open_log(path.with_name(LOG_NAME))
    listening = _listen(path, asked.life_seconds)
    inode = path.stat().st_ino
    if child := os.fork():
        print(child, flush=True)
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in enumerate((nothing, log_file, log_file)):
        os.dup2(source, descriptor)
    logging.basicConfig(
        format="%(asctime)s session process %(process)d: %(message)s", level=logging.INFO, stream=sys.stderr
    )
    log.info("started for connection %r, socket %s", asked.settings.conn_id, path)
    try:
        reason = asyncio.run(_serve(asked, listening, inode))
    except Exception:
        log.exception("failed")
        raise
    log.info("ended: %s", reason)


async def _serve(asked: StartRequest, listening: socket.socket, inode: int) -> str:
    return await SessionServer(asked).serve(listening, inode)


if __name__ == "__main__":
    main()
