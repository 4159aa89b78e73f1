"""Settings of a local cluster, with its hosts' names and addresses, and its directories."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

from testing.local_cluster.errors import LocalClusterError

USUAL_HOME = Path("/var/tmp/llm-bridge")
# Every cluster uses the same subnet: each has a bridge in its own namespace, without a route to other networks.
SUBNET = "10.77.0"
OUTSIDE_IP = f"{SUBNET}.1"  # address of the bridge, used by the relays
CONTROLLER, LOGIN, HUB = "ctl", "login", "hub"
MAX_NODES = 200


def state_root() -> Path:
    """Return the directory with the state of all local clusters (`$LLM_BRIDGE_HOME/clusters`)."""
    return Path(os.environ.get("LLM_BRIDGE_HOME") or USUAL_HOME).absolute() / "clusters"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one cluster, saved in its state directory.

    Args:
        name: 1-16 lower-case letters and digits, a letter first; also the prefix of its network namespaces.
        ssh_port: Port on 127.0.0.1 of the login host's sshd.
        nodes: Number of compute nodes, named n1, n2, ...
        gpus_per_node: Simulated GPUs per node.
        accounting: Run slurmdbd on MariaDB, so that sacct works.
        min_job_age: Seconds that slurmctld keeps a finished job.
        cpus_per_node: Configured CPUs per node, independent of the machine.
        memory_mb: Configured memory per node in MB, independent of the machine.
        names: Names of the first nodes, in place of n1, n2, ...

    Raises:
        LocalClusterError: A value is out of its range.
    """

    name: str = "local"
    ssh_port: int = 22022
    nodes: int = 4
    gpus_per_node: int = 8
    accounting: bool = True
    min_job_age: int = 300
    cpus_per_node: int = 32
    memory_mb: int = 512000
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))  # a list in cluster.json
        # No dash: the namespaces `lb-NAME-HOST` of one cluster must never match those of another.
        if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", self.name):
            raise LocalClusterError(
                f"cluster name {self.name!r}: use 1-16 lower-case letters and digits, beginning with a letter"
            )
        for field, low, high in (
            ("ssh_port", 1, 65535),
            ("nodes", 1, MAX_NODES),
            ("gpus_per_node", 1, 64),
            ("min_job_age", 2, 10**6),
            ("cpus_per_node", 1, 4096),
            ("memory_mb", 100, 10**8),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise LocalClusterError(f"{field}={value}: must be between {low} and {high}")
        # 13: the kernel's limit for "v-NAME", the interface of the node's network.
        bad = [name for name in self.names if not re.fullmatch(r"[a-z][a-z0-9-]{0,11}[a-z0-9]", name)]
        if bad or len(self.names) > self.nodes or len(set(self.host_names)) < len(self.host_names):
            raise LocalClusterError(
                f"names={self.names}: use at most {self.nodes} different names of 2-13 lower-case letters, digits and"
                " dashes, beginning with a letter"
            )

    # ---- hosts

    @property
    def node_names(self) -> list[str]:
        """Names of the compute nodes."""
        return [*self.names, *(f"n{i}" for i in range(len(self.names) + 1, self.nodes + 1))]

    @property
    def host_names(self) -> list[str]:
        """Names of all hosts of the cluster, except services."""
        return [CONTROLLER, LOGIN, *self.node_names]

    def address(self, host: str) -> str:
        """Return the IP address of a host of the cluster, or of `hub`, in the cluster's network."""
        fixed = {CONTROLLER: 2, LOGIN: 3, HUB: 4}
        number = fixed.get(host) or 11 + self.node_names.index(host)
        return f"{SUBNET}.{number}"

    def role(self, host: str) -> str:
        """Return the name of a host's role script."""
        return {CONTROLLER: "controller", LOGIN: "login"}.get(host, "node")

    # ---- directories

    @property
    def state_dir(self) -> Path:
        """Directory of all files of this cluster."""
        return state_root() / self.name

    @property
    def ssh_dir(self) -> Path:
        """Directory of the files for clients: `id_svc` and `known_hosts`."""
        return self.state_dir / "ssh"

    @property
    def etc_dir(self) -> Path:
        """Rendered configuration."""
        return self.state_dir / "etc"

    @property
    def host_etc_dir(self) -> Path:
        """Copy of the machine's /etc that the hosts mount."""
        return self.state_dir / "host-etc"

    @property
    def log_dir(self) -> Path:
        """Directory with a folder of logs per host, and `relay-PORT.log`."""
        return self.state_dir / "log"

    @property
    def shared_dir(self) -> Path:
        """Shared file system, at the same path on every host and on the machine."""
        return self.state_dir / "shared"

    @property
    def workspace(self) -> Path:
        """Folder of user svc on the shared file system, for the jobs' files."""
        return self.shared_dir / "workspace"

    def host_dir(self, host: str) -> Path:
        """Return the directory of a host's local disk."""
        return self.state_dir / "hosts" / host

    # ---- saved copy

    def save(self) -> None:
        """Write the settings to the state directory, for `load_settings`."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "cluster.json").write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def load_settings(name: str) -> Settings | None:
    """Return the settings of a cluster's last start; None if it was never started, or was wiped."""
    path = Settings(name=name).state_dir / "cluster.json"
    if not path.exists():
        return None
    try:
        return Settings(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise LocalClusterError(
            f"{path} is damaged ({error}); run: python3 -m testing.local_cluster up --name {name}"
        ) from error
