"""Limit how many processes of this host log in to one login node at the same time.

Each Airflow task is a process with a connection of its own. sshd refuses some of the connections that have not logged
in yet once there are ten of them (``MaxStartups``, sshd_config(5)).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

# Below sshd's ten, so that two hosts of Airflow may log in at the same time.
AT_ONCE = 4
MAX_WAIT_SECONDS = 60.0


@asynccontextmanager
async def turn(conn_id: str) -> AsyncIterator[None]:
    """Wait until fewer than AT_ONCE processes of this host and user log in by a connection; leave after the login.

    Nobody waits longer than MAX_WAIT_SECONDS, or where the folder for temporary files cannot be used.

    Args:
        conn_id: Airflow connection.
    """
    with ExitStack() as held:
        with suppress(OSError):
            files = [_open(path, held) for path in _places(conn_id)]
            deadline = time.monotonic() + MAX_WAIT_SECONDS
            while not any(_lock(file) for file in files) and time.monotonic() < deadline:
                await asyncio.sleep(random.uniform(0.02, 0.1))
        yield


def _places(conn_id: str) -> list[Path]:
    folder = Path(tempfile.gettempdir()) / f"llm-bridge-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    name = hashlib.sha256(conn_id.encode()).hexdigest()[:16]
    return [folder / f"login-{name}.{number}" for number in range(AT_ONCE)]


def _open(path: Path, held: ExitStack) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    held.callback(os.close, file)
    return file


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
