"""State of a cluster: hosts, daemons, nodes."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

from testing.local_cluster import host as hosts
from testing.local_cluster import ports, services
from testing.local_cluster.command import run_group
from testing.local_cluster.namespaces import NETWORK, Namespaces
from testing.local_cluster.render import known_addresses
from testing.local_cluster.settings import CONTROLLER, Settings
from testing.local_cluster.status import ClusterStatus, HostStatus

POLL_INTERVAL_SECONDS = 15.0  # squeue and sinfo give up after about 10 s if slurmctld is unreachable


def look(settings: Settings, spaces: Namespaces) -> ClusterStatus:
    """Return the state of the whole cluster; a part that does not answer counts as down."""
    present = [name for name in spaces.present() if name != NETWORK]
    inits = spaces.init_pids(present)
    cut = spaces.unplugged()
    extra = services.running(settings, spaces)
    running = [host for host in settings.host_names if host in inits]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(lambda host: _daemons(settings, host, inits[host]), running)
        daemons = dict(zip(running, found, strict=True))
    controller_answers = daemons.get(CONTROLLER, {}).get("slurmctld")
    nodes = node_states(settings, inits[CONTROLLER]) if controller_answers else {}
    addresses = known_addresses(settings) if extra else {}
    return ClusterStatus(
        name=settings.name,
        up=bool(present),
        ssh=f"svc@{ports.LOOPBACK}:{settings.ssh_port}",
        login_works=bool(present) and ports.log_in(settings),
        key=str(settings.ssh_dir / "id_svc"),
        known_hosts=str(settings.ssh_dir / "known_hosts"),
        workspace=str(settings.workspace),
        hosts=[
            HostStatus(
                name=host,
                ip=addresses.get(host) or settings.address(host),
                on=host in inits,
                cut=host in cut,
                daemons=daemons.get(host, {}),
                node_state=nodes.get(host),
                service=extra.get(host),
            )
            for host in (*settings.host_names, *extra)
        ],
    )


def node_states(settings: Settings, controller: int) -> dict[str, str]:
    """Return the Slurm state of each node; empty if slurmctld is unreachable.

    Args:
        settings: The cluster.
        controller: Main process of the controller host.
    """
    return _pairs(settings, controller, ["sinfo", "-a", "-h", "-N", "-o", "%N %T"])


def _daemons(settings: Settings, host: str, init_pid: int) -> dict[str, bool]:
    found = _pairs(settings, init_pid, hosts.role_argv(settings, host, "status"))
    return {name: pid != "down" for name, pid in found.items()}


def _pairs(settings: Settings, init_pid: int, argv: list[str]) -> dict[str, str]:
    """Run a program that prints a pair per line and return the pairs; none after a timeout."""
    try:
        done = run_group(hosts.enter_argv(settings, init_pid, argv, None), None, POLL_INTERVAL_SECONDS)
    except subprocess.TimeoutExpired:
        return {}
    pairs = (line.split() for line in done.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
