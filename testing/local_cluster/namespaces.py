"""Network namespaces and the processes in them.

The kernel is the only record of what runs: a host's processes are those inside the network namespace
`lb-CLUSTER-HOST`, and its main process is PID 1 of a pid namespace. Without pid files, a reused pid cannot be
mistaken for a host's process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from testing.local_cluster.command import checked
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.settings import OUTSIDE_IP, USUAL_HOME, state_root

NETNS_DIR = Path("/run/netns")
NETWORK = "net"  # the namespace that holds the bridge and the relays; not a host


class Namespaces:
    """Network namespaces of one cluster: one per host, and one with the bridge that connects them.

    Args:
        cluster: Name of the cluster.
    """

    def __init__(self, cluster: str) -> None:
        root = state_root()
        # Clusters of the same name below another LLM_BRIDGE_HOME are other clusters.
        mark = "" if root == USUAL_HOME / "clusters" else f".{zlib.crc32(os.fsencode(root)):08x}"
        self.prefix = f"lb-{cluster}{mark}-"

    def name(self, host: str) -> str:
        """Return the name of a host's namespace in `ip netns`."""
        return self.prefix + host

    def path(self, host: str) -> Path:
        """Return the file of a host's namespace."""
        return NETNS_DIR / self.name(host)

    def present(self) -> list[str]:
        """Return all hosts that have a namespace, the bridge's (`net`) included."""
        if not NETNS_DIR.exists():
            return []
        names = sorted(entry.name for entry in NETNS_DIR.iterdir() if entry.name.startswith(self.prefix))
        return [name.removeprefix(self.prefix) for name in names]

    # ---- network

    def create_bridge(self) -> None:
        """Create the namespace with the bridge, with an address for the relays and no route to other networks."""
        checked(["ip", "netns", "add", self.name(NETWORK)])
        self._batch(
            NETWORK,
            "link set lo up",
            "link add br0 type bridge",
            f"addr add {OUTSIDE_IP}/24 dev br0",
            "link set br0 up",
        )

    def add_host(self, host: str, address: str) -> None:
        """Create a host's namespace and connect it to the bridge."""
        checked(["ip", "netns", "add", self.name(host)])
        self._batch(
            NETWORK,
            f"link add v-{host} type veth peer name eth0 netns {self.name(host)}",
            f"link set v-{host} master br0 up",
        )
        self._batch(host, "link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up")

    def plug(self, host: str, connected: bool) -> None:
        """Connect a host to the network, or disconnect it."""
        self._batch(NETWORK, f"link set v-{host} {'up' if connected else 'down'}")

    def unplugged(self) -> set[str]:
        """Return the disconnected hosts."""
        if not self.path(NETWORK).exists():
            return set()
        links = json.loads(
            checked(["ip", "-n", self.name(NETWORK), "-json", "link", "show", "master", "br0"]) or "[]"
        )
        return {link["ifname"].removeprefix("v-") for link in links if "UP" not in link["flags"]}

    def remove(self, hosts: Iterable[str]) -> None:
        """Delete namespaces, the interfaces in them included. Their processes must have ended."""
        for host in hosts:
            checked(["ip", "netns", "delete", self.name(host)])

    def _batch(self, host: str, *lines: str) -> None:
        checked(["ip", "-n", self.name(host), "-batch", "-"], input="\n".join(lines) + "\n")

    # ---- processes

    def processes(self, hosts: Iterable[str]) -> dict[str, list[int]]:
        """Return the pids (the machine's) of all processes in each host's network namespace."""
        found: dict[str, list[int]] = {host: [] for host in hosts}
        inodes = {}
        for host in found:
            with contextlib.suppress(FileNotFoundError):
                inodes[self.path(host).stat().st_ino] = host
        if not inodes:
            return found
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            # Zombies, and processes that ended meanwhile, have no namespaces.
            with contextlib.suppress(OSError):
                inode = os.stat(f"/proc/{pid}/ns/net").st_ino
                if inode in inodes:
                    found[inodes[inode]].append(pid)
        return found

    def init_pids(self, hosts: Iterable[str]) -> dict[str, int]:
        """Return the main process (PID 1) of each running host."""
        depth = len(_pids_in_namespaces("self"))
        inits = {}
        for host, pids in self.processes(hosts).items():
            for pid in pids:
                numbers = _pids_in_namespaces(str(pid))
                if len(numbers) == depth + 1 and numbers[-1] == 1:
                    inits[host] = pid
        return inits

    def init_pid(self, host: str) -> int:
        """Return the main process of one host.

        Raises:
            LocalClusterError: The host is off.
        """
        pid = self.init_pids([host]).get(host)
        if pid is None:
            raise LocalClusterError(f"host {host} is off; see: python3 -m testing.local_cluster status")
        return pid

    def terminate(self, hosts: Iterable[str], seconds: float) -> None:
        """Send SIGTERM to the hosts' main processes, and wait up to `seconds` until they have ended."""
        hosts = list(hosts)
        _signal(self.init_pids(hosts).values(), signal.SIGTERM)
        _wait(lambda: not self.init_pids(hosts), seconds)

    def kill(self, hosts: Iterable[str]) -> None:
        """Send SIGKILL to every process of these hosts, until none is left.

        Raises:
            LocalClusterError: A process has not ended after 10 s.
        """
        hosts = list(hosts)

        def gone() -> bool:
            left = [pid for pids in self.processes(hosts).values() for pid in pids]
            _signal(
                left, signal.SIGKILL
            )  # repeated: a parent may have started another process before its end
            return not left

        if not _wait(gone, 10):
            left = {host: pids for host, pids in self.processes(hosts).items() if pids}
            raise LocalClusterError(
                f"processes have not ended 10 s after SIGKILL: {left}; inspect /proc/PID/stack"
            )


def _pids_in_namespaces(pid: str) -> list[int]:
    """Return a process' pid in each of its pid namespaces, the machine's first; empty if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return []


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.03)
    return True
