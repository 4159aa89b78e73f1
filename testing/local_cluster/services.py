"""Additional hosts that run one command each, such as a Hub server for tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

from testing.local_cluster import host as hosts
from testing.local_cluster import ports, render
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.namespaces import NETWORK, Namespaces
from testing.local_cluster.settings import HUB, SUBNET, Settings

# For services other than `hub`, which has .4 and is always in the hosts files.
FREE_ADDRESSES = [f"{SUBNET}.{number}" for number in range(5, 10)]


def running(settings: Settings, spaces: Namespaces) -> dict[str, str]:
    """Return "127.0.0.1:PORT -> HOST:PORT" of each running service, by host name."""
    found = {}
    for name in spaces.present():
        note = settings.host_dir(name) / "service.json"
        if name != NETWORK and name not in settings.host_names and note.exists():
            ports_of = json.loads(note.read_text())
            found[name] = f"{ports.LOOPBACK}:{ports_of['listen_port']} -> {name}:{ports_of['port']}"
    return found


def start(
    settings: Settings,
    spaces: Namespaces,
    name: str,
    listen_port: int,
    port: int,
    argv: list[str],
    env: dict[str, str] | None,
    timeout: float,
) -> None:
    """Boot a host that runs a command; see `LocalCluster.start_service`."""
    if not re.fullmatch(r"[a-z][a-z0-9]{0,8}", name) or name in settings.host_names or name == NETWORK:
        raise LocalClusterError(
            f"service name {name!r}: use 1-9 lower-case letters and digits, no name of a host or 'net'"
        )
    if name in spaces.present():
        raise LocalClusterError(
            f"service {name} exists already; stop it first: python3 -m testing.local_cluster service stop {name}"
            f" --name {settings.name}"
        )
    program = argv[0] if argv else ""
    if not shutil.which(program):
        raise LocalClusterError(f"service {name}: program {program!r} not found on this machine")
    ports.check_free(listen_port, "choose another port with --listen")
    address = _address(settings, name)
    disk = settings.host_dir(name)
    disk.mkdir(parents=True, exist_ok=True)
    (disk / "service.json").write_text(json.dumps({"listen_port": listen_port, "port": port}))
    log = hosts.log_file(settings, name)
    log.unlink(missing_ok=True)
    try:
        spaces.add_host(name, address)
        command = [str(settings.state_dir / "roles" / "service"), *argv]
        hosts.boot(settings, spaces, name, command, dict(os.environ if env is None else env), Path.cwd())
        ports.start_relay(settings, spaces, listen_port, name, address, port)
        _wait_until_it_listens(settings, spaces, name, address, listen_port, port, timeout)
    except BaseException:
        stop(settings, spaces, name)
        raise


def stop(settings: Settings, spaces: Namespaces, name: str) -> None:
    """Stop a service and its host. No-op if there is none."""
    note = settings.host_dir(name) / "service.json"
    if name in settings.host_names or name == NETWORK or name not in spaces.present():
        return
    if note.exists():
        ports.stop_relay(spaces, json.loads(note.read_text())["listen_port"])
        note.unlink()
    spaces.terminate([name], seconds=5)
    spaces.kill([name])
    spaces.remove([name])


def _address(settings: Settings, name: str) -> str:
    known = render.known_addresses(settings)
    if name in known:
        return known[name]
    free = [address for address in FREE_ADDRESSES if address not in known.values()]
    if not free:
        raise LocalClusterError(
            f"service {name}: no free address; a cluster has at most {len(FREE_ADDRESSES)} services besides {HUB}"
        )
    render.add_host_name(settings, name, free[0])
    return free[0]


def _wait_until_it_listens(
    settings: Settings,
    spaces: Namespaces,
    name: str,
    address: str,
    listen_port: int,
    port: int,
    timeout: float,
) -> None:
    """Wait until the relay listens, which it does as soon as the command does."""
    deadline = time.monotonic() + timeout
    booted = False
    while not ports.accepts(listen_port):
        alive = bool(spaces.processes([name])[name])
        booted = booted or alive
        if booted and not alive:
            raise hosts.failed_boot(settings, name)
        if time.monotonic() > deadline:
            raise LocalClusterError(
                f"service {name} does not listen on {address}:{port} after {timeout:.0f} s (it must listen"
                " on 0.0.0.0, because 127.0.0.1 is unreachable from other hosts); its output:"
                f" {hosts.log_file(settings, name)}"
            )
        time.sleep(0.1)
