"""Requests of tasks to the session process of their host, its answers, and the request to start it.

A request is one connection to the process's Unix socket: one frame from the task, BEGUN and one further frame back. A
frame is its length in bytes as 8 digits, followed by JSON. A task that does not want to wait until its request is begun
sends WITHDRAW; the answer is then WITHDRAWN, unless the request has begun meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_bridge import exceptions
from llm_bridge.remote import transport
from llm_bridge.remote.login_settings import LoginSettings

CALL, RUN = "call", "run"
# Log of all session processes of a host and user, beside their sockets.
LOG_NAME = "sessions.log"
# Nothing of a request has been sent to the login node before this frame.
BEGUN = {"begun": True}
WITHDRAWN = {"withdrawn": True}
WITHDRAW = b"w"
# sun_path of unix(7), with its final zero.
MAX_SOCKET_PATH = 107
# Exceptions that the process reports by name; any other one is a defect.
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        exceptions.ConfigError,
        exceptions.HostKeyNotTrusted,
        exceptions.LoginDenied,
        exceptions.LoginNodeUnreachable,
        exceptions.LoginShellFailed,
        transport.NotStarted,
    )
}


@dataclass(frozen=True)
class StartRequest:
    """Standard input of the session process.

    Attributes:
        socket: Path of its socket.
        settings: Values of the Airflow connection.
        slurm_bin: Directory of Slurm's commands on the login node; empty for those in PATH.
        login_python: Absolute path of the login node's Python.
        idle_seconds: Seconds without a request after which it ends.
        life_seconds: Seconds after its start after which it accepts no more requests.
    """

    socket: str
    settings: LoginSettings
    slurm_bin: str
    login_python: str
    idle_seconds: float
    life_seconds: float

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> StartRequest:
        """Return it from JSON."""
        values = json.loads(text)
        return cls(**{**values, "settings": LoginSettings(**values["settings"])})


def pack(value: Any) -> bytes:
    """Return a value as a frame."""
    data = json.dumps(value).encode()
    return b"%08d" % len(data) + data


async def read(reader: asyncio.StreamReader) -> Any:
    """Return the value of the next frame.

    Raises:
        EOFError: The other side has ended.
    """
    return json.loads(await reader.readexactly(int(await reader.readexactly(8))))


def pack_error(error: Exception) -> dict[str, Any]:
    """Return an exception as JSON values."""
    if isinstance(error, transport.CommandFailed):
        return {"failed": error.done.stderr}
    name = type(error).__name__
    return {"error": [name, str(error) if name in _ERRORS else f"{name}: {error}"]}


def unpack_error(found: dict[str, Any], helper: str) -> Exception | None:
    """Return the exception in an answer; None if the answer has none.

    Args:
        found: The answer.
        helper: Name of the helper that was called.
    """
    if "failed" in found:
        return transport.CommandFailed([helper], transport.Completed(1, "", found["failed"]))
    if "error" in found:
        name, text = found["error"]
        return _ERRORS.get(name, RuntimeError)(text)
    return None


def is_own(connected: Any) -> bool:
    """Return True if the process at the other end of a Unix socket belongs to this process's user."""
    size = struct.calcsize("3i")
    peer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid: int = struct.unpack("3i", peer)[1]
    return uid == os.getuid()


def fits(path: Path) -> bool:
    """Return True if a Unix socket can have this path."""
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH
