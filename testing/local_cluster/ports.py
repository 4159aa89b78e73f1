"""Relays between the machine's loopback and a cluster's hosts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.namespaces import NETWORK, Namespaces
from testing.local_cluster.settings import Settings

LOOPBACK = "127.0.0.1"


def check_free(port: int, hint: str) -> None:
    """Check that a loopback port is free.

    Args:
        port: The port.
        hint: Next action for the error message.

    Raises:
        LocalClusterError: The port is taken.
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
    """Start the relay LOOPBACK:listen_port -> host:port. It listens while the host's program does."""
    argv = [sys.executable, "-I", str(Path(__file__).with_name("relay.py")), f"{LOOPBACK}:{listen_port}"]
    argv += [str(spaces.path(NETWORK)), str(spaces.path(host)), f"{ip}:{port}"]
    with (settings.log_dir / f"relay-{listen_port}.log").open("ab") as log:
        subprocess.run(
            ["setsid", "--fork", *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
        )


def stop_relay(spaces: Namespaces, listen_port: int) -> None:
    """Stop the relay of a port. No-op if there is none."""
    for pid in spaces.processes([NETWORK]).get(NETWORK, []):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"{LOOPBACK}:{listen_port}".encode() in argv:
                os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def accepts(port: int) -> bool:
    """Return whether a loopback port accepts connections."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2):
            return True
    except OSError:
        return False


def log_in(settings: Settings) -> bool:
    """Return whether svc can log in from the machine and run a command, as Airflow does."""
    options = ["BatchMode=yes", "ConnectTimeout=5", f"UserKnownHostsFile={settings.ssh_dir / 'known_hosts'}"]
    argv = ["ssh", "-F", "/dev/null", "-i", str(settings.ssh_dir / "id_svc"), "-p", str(settings.ssh_port)]
    argv += [argument for option in options for argument in ("-o", option)]
    try:
        done = subprocess.run(
            [*argv, f"svc@{LOOPBACK}", "id -un"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # The login shell may print a greeting first.
    return done.returncode == 0 and done.stdout.split()[-1:] == [b"svc"]
