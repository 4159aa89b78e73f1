"""A login node for unit tests: an SSH server of asyncssh that runs commands on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest

PASSWORD = "a-secret-of-the-connection"


class LoginNode:
    """An SSH server that runs commands on this machine, and the Airflow connection to it.

    Attributes:
        logins: Number of logins.
        tries: Number of connections.
        accepts: It accepts the connection's key.
        max_sessions: Sessions of a connection that it accepts, as MaxSessions of sshd.
        cut_off: Number of commands whose client did not wait for their end.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logins = self.tries = self.cut_off = 0
        self.accepts = True
        self.max_sessions = 10
        self._children: list[asyncio.subprocess.Process] = []
        self._patch = monkeypatch
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.key = folder / "id"
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(self.key))
        self.public_key = key.convert_to_public()

    async def listen(self) -> None:
        """Accept connections."""
        node = self

        class Server(asyncssh.SSHServer):
            sessions = 0

            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                node.tries += 1

            def begin_auth(self, username: str) -> bool:
                return True

            def public_key_auth_supported(self) -> bool:
                return True

            def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
                return node.accepts and key == node.public_key

            def auth_completed(self) -> None:
                node.logins += 1

            def session_requested(self) -> Any:
                if self.sessions == node.max_sessions:
                    return False
                self.sessions += 1
                return asyncssh.SSHServerProcess(self.run, None, 3, False)

            async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
                try:
                    await node.run(process)
                finally:
                    self.sessions -= 1

        self.server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Server,
            server_host_keys=[self._host_key],
            encoding=None,
        )
        self.connect()

    async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run a client's command."""
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(
            process.command or "", stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        self._children.append(child)
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        waiting = asyncio.create_task(child.wait())
        closed = asyncio.create_task(process.channel.wait_closed())
        await asyncio.wait({waiting, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():  # the command runs on, as with sshd, until it writes
            self.cut_off += 1
            return
        await process.stdout.drain()
        await process.stderr.drain()
        closed.cancel()
        process.exit(waiting.result())

    async def close(self) -> None:
        """End the server and its commands."""
        for child in self._children:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
        self.server.close()
        await self.server.wait_closed()

    def connect(self, **extra: Any) -> None:
        """Set the Airflow connection."""
        host_key = self._host_key.export_public_key().decode().strip()
        values = {
            "conn_type": "ssh",
            "host": "127.0.0.1",
            "port": self.server.get_port(),
            "login": "ada",
            "password": PASSWORD,
            "extra": {"key_file": str(self.key), "host_key": host_key, **extra},
        }
        self._patch.setenv("AIRFLOW_CONN_SLURM_X", json.dumps(values))
