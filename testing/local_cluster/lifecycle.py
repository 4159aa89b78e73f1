"""Start and stop of a cluster's hosts."""

from __future__ import annotations

import time

from testing.local_cluster import host as hosts
from testing.local_cluster import inspection, ports
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.namespaces import NETWORK, Namespaces
from testing.local_cluster.settings import CONTROLLER, LOGIN, Settings

BOOT_SECONDS = 60.0  # the usual is 5; the machine may be busy
SHUTDOWN_SECONDS = 8.0
USABLE = {"idle", "mixed", "allocated", "completing"}


def start(settings: Settings, spaces: Namespaces) -> None:
    """Start all hosts of a cluster whose files are rendered, and wait until jobs can be submitted over ssh.

    Raises:
        LocalClusterError: A host ended, or is not ready after 60 s.
    """
    spaces.create_bridge()
    for host in settings.host_names:  # each boots while the next one's network is made
        spaces.add_host(host, settings.address(host))
        hosts.boot_role(settings, spaces, host)
    ports.start_relay(settings, spaces, settings.ssh_port, LOGIN, settings.address(LOGIN), port=22)
    wait_ready(settings, spaces, settings.host_names, BOOT_SECONDS)
    wait_for_nodes(settings, spaces, settings.node_names, BOOT_SECONDS)
    wait_for_ssh(settings)


def wait_for_ssh(settings: Settings) -> None:
    """Wait until svc can log in from the machine: the relay finds the login host's sshd up to 0.1 s late.

    Raises:
        LocalClusterError: It cannot after 60 s.
    """
    deadline = time.monotonic() + BOOT_SECONDS
    while not ports.log_in(settings):
        if time.monotonic() > deadline:
            raise LocalClusterError(
                f"svc cannot log in at {ports.LOOPBACK}:{settings.ssh_port}; see"
                f" {settings.log_dir}/relay-{settings.ssh_port}.log and {settings.log_dir}/login/"
            )
        time.sleep(0.05)


def tear_down(spaces: Namespaces, patience: float = SHUTDOWN_SECONDS) -> None:
    """Stop a cluster: SIGTERM, which saves the state, and SIGKILL after `patience` seconds."""
    present = spaces.present()
    if patience:
        spaces.terminate([host for host in present if host != NETWORK], patience)
    spaces.kill(present)
    # The bridge is last: deleting a host's namespace removes its interface from the bridge.
    spaces.remove(sorted(present, key=lambda host: host == NETWORK))


def wait_ready(settings: Settings, spaces: Namespaces, names: list[str], timeout: float) -> None:
    """Wait until the daemons of hosts that were just started answer.

    Raises:
        LocalClusterError: A host ended, or is not ready after `timeout` seconds.
    """
    begun = time.monotonic()
    deadline = begun + timeout
    waiting, seen = set(names), set[str]()
    while waiting:
        ready = {host for host, pid in spaces.init_pids(waiting).items() if hosts.is_ready(pid)}
        waiting -= ready
        alive = {host for host, pids in spaces.processes(waiting).items() if pids}
        seen |= alive
        for host in waiting - alive:
            # Not seen yet: its first process may be about to enter the namespace. It takes milliseconds.
            if host in seen or time.monotonic() > begun + 5:
                raise hosts.failed_boot(settings, host)
        if waiting and time.monotonic() > deadline:
            raise LocalClusterError(
                f"not ready after {timeout:.0f} s: {', '.join(sorted(waiting))}; see {settings.log_dir}/HOST/"
            )
        time.sleep(0.05)


def wait_for_nodes(settings: Settings, spaces: Namespaces, nodes: list[str], timeout: float) -> None:
    """Wait until nodes can take jobs; see `LocalCluster.wait_for_nodes`."""
    deadline = time.monotonic() + timeout
    while True:
        controller = spaces.init_pids([CONTROLLER]).get(CONTROLLER)
        states = inspection.node_states(settings, controller) if controller else {}
        if all(states.get(node) in USABLE for node in nodes):
            return
        if time.monotonic() > deadline:
            raise LocalClusterError(
                f"nodes not usable after {timeout:.0f} s: {states}; see {settings.log_dir}/ctl/slurmctld.log"
            )
        time.sleep(0.1)
