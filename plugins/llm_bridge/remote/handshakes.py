"""Limit how many processes of this host log in to one login node at the same time.

sshd refuses some of the connections that have not logged in yet once there are ten of them (``MaxStartups``,
sshd_config(5)). Tasks share a connection (``host_session``); triggerers, commands and tasks that cannot share do not.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from llm_bridge.remote import host_folder

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
    folder = host_folder.path()
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
