"""The relays between the machine's loopback and a cluster's hosts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from local_cluster.errors import LocalClusterError
from local_cluster.namespaces import NETWORK, Namespaces
from local_cluster.settings import Settings

LOOPBACK = "127.0.0.1"


def check_free(port: int, hint: str) -> None:
    """Make sure that nothing listens on a loopback port.

    Args:
        port: the port.
        hint: what to do when it is taken.

    Raises:
        LocalClusterError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise LocalClusterError(
                f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; {hint}"
            ) from error


def start_relay(
    settings: Settings, spaces: Namespaces, listen_port: int, host: str, ip: str, port: int
) -> None:
    """Start the relay LOOPBACK:listen_port -> host:port. It listens once the host's program does."""
    argv = [sys.executable, "-I", str(Path(__file__).with_name("relay.py")), f"{LOOPBACK}:{listen_port}"]
    argv += [str(spaces.path(NETWORK)), str(spaces.path(host)), f"{ip}:{port}"]
    with (settings.log_dir / f"relay-{listen_port}.log").open("ab") as log:
        subprocess.run(
            ["setsid", "--fork", *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
        )


def stop_relay(spaces: Namespaces, listen_port: int) -> None:
    """End the relay of one port; fine if there is none."""
    for pid in spaces.processes([NETWORK]).get(NETWORK, []):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"{LOOPBACK}:{listen_port}".encode() in argv:
                os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def accepts(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2):
            return True
    except OSError:
        return False


def greets_as_ssh(port: int) -> bool:
    """Whether an SSH server answers on a loopback port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
