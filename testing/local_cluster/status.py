"""State of a cluster at one moment, and its presentation."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class HostStatus:
    """State of one host.

    Attributes:
        name: Host name.
        ip: Address in the cluster's network.
        on: Whether the host's main process runs.
        cut: Whether it is disconnected from the network.
        daemons: Whether each daemon runs, by name; empty if the host is off, or a service's.
        node_state: Slurm's state (`idle`, `allocated`, `down*`); None if it is no node, or slurmctld is unreachable.
        service: "127.0.0.1:PORT -> HOST:PORT" of a service's host; None for other hosts.
    """

    name: str
    ip: str
    on: bool
    cut: bool
    daemons: dict[str, bool]
    node_state: str | None = None
    service: str | None = None


@dataclasses.dataclass(frozen=True)
class ClusterStatus:
    """State of one cluster.

    Attributes:
        name: Name of the cluster.
        up: Whether it was started and not stopped; faults do not change this.
        ssh: "svc@127.0.0.1:PORT".
        login_works: Whether a login as svc with its key, and a command, succeed.
        key: Path of svc's private key.
        known_hosts: Path of the file with the login host's public key.
        workspace: Folder of svc on the shared file system.
        hosts: The cluster's hosts, then services' hosts.
    """

    name: str
    up: bool
    ssh: str
    login_works: bool
    key: str
    known_hosts: str
    workspace: str
    hosts: list[HostStatus]

    def problems(self) -> list[str]:
        """Return a line for each problem; empty if the cluster is healthy."""
        if not self.up:
            return ["down"]
        found = []
        for host in self.hosts:
            if not host.on:
                found.append(f"{host.name} is off")
            if host.cut:
                found.append(f"{host.name} is disconnected from the network")
            found += [f"{daemon} on {host.name} is down" for daemon, runs in host.daemons.items() if not runs]
        if not self.login_works:
            found.append(f"no login at {self.ssh}")
        return found

    def as_dict(self) -> dict[str, object]:
        """Return the state as JSON values."""
        return dataclasses.asdict(self) | {"problems": self.problems()}

    def table(self) -> str:
        """Return the state as a table for the terminal."""
        lines = [f"cluster {self.name}: {'up' if self.up else 'down'}"]
        if not self.up:
            return lines[0]
        rows = [("HOST", "ADDRESS", "STATE", "NODE", "DAEMONS")]
        for host in self.hosts:
            state = "off" if not host.on else "cut off" if host.cut else "on"
            daemons = [name if runs else f"{name} DOWN" for name, runs in host.daemons.items()]
            rows.append(
                (host.name, host.ip, state, host.node_state or "-", host.service or ", ".join(daemons) or "-")
            )
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        for row in rows:
            lines.append(
                "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
            )
        port = self.ssh.rsplit(":", 1)[1]
        lines += [
            f"workspace: {self.workspace}",
            f"log in:    ssh -i {self.key} -o UserKnownHostsFile={self.known_hosts} -p {port} svc@127.0.0.1"
            + ("" if self.login_works else "   (fails)"),
        ]
        return "\n".join(lines)
