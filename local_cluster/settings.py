"""What a local cluster is made of: its settings, its hosts' names and addresses, its directories."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

from local_cluster.errors import LocalClusterError

USUAL_HOME = Path("/var/tmp/llm-bridge")
# The same subnet serves every cluster: each has a bridge in a namespace of its own, with no route out.
SUBNET = "10.77.0"
OUTSIDE_IP = f"{SUBNET}.1"  # the bridge itself: where the relays stand
CONTROLLER, LOGIN, HUB = "ctl", "login", "hub"
MAX_NODES = 200


def state_root() -> Path:
    """Directory that holds the state of all local clusters (`$LLM_BRIDGE_HOME/clusters`)."""
    return Path(os.environ.get("LLM_BRIDGE_HOME") or USUAL_HOME).absolute() / "clusters"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides how one cluster is built. Saved in its state directory.

    Args:
        name: 1-16 lower-case letters and digits, a letter first; also the prefix of its network namespaces.
        ssh_port: port on 127.0.0.1 that leads to the login host's sshd.
        nodes: number of compute nodes, named n1, n2, ...
        gpus_per_node: pretend GPUs a node.
        accounting: run slurmdbd on MariaDB, so that sacct works.
        min_job_age: seconds a finished job stays known to slurmctld.
        cpus_per_node: CPUs a node claims to have, whatever the machine has.
        memory_mb: memory a node claims to have, in MB.

    Raises:
        LocalClusterError: a value is out of its range.
    """

    name: str = "local"
    ssh_port: int = 22022
    nodes: int = 4
    gpus_per_node: int = 8
    accounting: bool = True
    min_job_age: int = 300
    cpus_per_node: int = 32
    memory_mb: int = 512000

    def __post_init__(self) -> None:
        # No dash: the namespaces `lb-NAME-HOST` of one cluster must never look like those of another.
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

    # ---- hosts

    @property
    def node_names(self) -> list[str]:
        """Names of the compute nodes."""
        return [f"n{i}" for i in range(1, self.nodes + 1)]

    @property
    def host_names(self) -> list[str]:
        """Names of all hosts of the cluster itself (services come on top)."""
        return [CONTROLLER, LOGIN, *self.node_names]

    def address(self, host: str) -> str:
        """IP of a host of the cluster, or of `hub`, inside the cluster's own network."""
        fixed = {CONTROLLER: 2, LOGIN: 3, HUB: 4}
        number = fixed.get(host) or 10 + int(host.removeprefix("n"))
        return f"{SUBNET}.{number}"

    def role(self, host: str) -> str:
        """The role script a host of the cluster runs."""
        return {CONTROLLER: "controller", LOGIN: "login"}.get(host, "node")

    # ---- directories

    @property
    def state_dir(self) -> Path:
        """All that belongs to this cluster on disk."""
        return state_root() / self.name

    @property
    def ssh_dir(self) -> Path:
        """What a client needs: `id_svc` and `known_hosts`."""
        return self.state_dir / "ssh"

    @property
    def etc_dir(self) -> Path:
        """Rendered configuration."""
        return self.state_dir / "etc"

    @property
    def log_dir(self) -> Path:
        """One folder of logs a host, and `relay-PORT.log`."""
        return self.state_dir / "log"

    @property
    def shared_dir(self) -> Path:
        """The "shared file system": the same path on every host and on the machine."""
        return self.state_dir / "shared"

    @property
    def workspace(self) -> Path:
        """Folder of user svc on the shared file system, for whatever jobs read and write."""
        return self.shared_dir / "workspace"

    def host_dir(self, host: str) -> Path:
        """The local disk of one host."""
        return self.state_dir / "hosts" / host

    # ---- saved copy

    def save(self) -> None:
        """Write the settings where `load_settings` finds them."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "cluster.json").write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def load_settings(name: str) -> Settings | None:
    """Settings that a cluster was last started with; None where it never was (or was wiped)."""
    path = Settings(name=name).state_dir / "cluster.json"
    if not path.exists():
        return None
    try:
        return Settings(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise LocalClusterError(
            f"{path} is damaged ({error}); run: python3 -m local_cluster up --name {name}"
        ) from error
