"""What is known about a cluster at one moment, and how it is shown."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class HostStatus:
    """One host.

    Attributes:
        name: host name.
        ip: address in the cluster's network.
        on: the host's main process runs.
        cut: its network cable is pulled.
        daemons: daemon name -> whether it runs; empty when the host is off, or a service's.
        node_state: Slurm's word (`idle`, `allocated`, `down*`); None for no node, or slurmctld away.
        service: "127.0.0.1:PORT -> HOST:PORT" of a service's host; None else.
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
    """One cluster.

    Attributes:
        name: the cluster.
        up: it has been started and not brought down (faults do not change that).
        ssh: "svc@127.0.0.1:PORT".
        ssh_answers: whether that port greets as an SSH server.
        key: path of svc's private key.
        known_hosts: path of the file with the login host's public key.
        workspace: svc's folder on the shared file system.
        hosts: the cluster's hosts, then services' hosts.
    """

    name: str
    up: bool
    ssh: str
    ssh_answers: bool
    key: str
    known_hosts: str
    workspace: str
    hosts: list[HostStatus]

    def problems(self) -> list[str]:
        """Everything that keeps the cluster from being whole; empty when it is healthy."""
        if not self.up:
            return ["it is not up"]
        found = []
        for host in self.hosts:
            if not host.on:
                found.append(f"{host.name} is off")
            if host.cut:
                found.append(f"{host.name} is cut from the network")
            found += [f"{daemon} on {host.name} is down" for daemon, runs in host.daemons.items() if not runs]
        if not self.ssh_answers:
            found.append(f"no SSH server answers at {self.ssh}")
        return found

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self) | {"problems": self.problems()}

    def table(self) -> str:
        """Text for people."""
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
            + ("" if self.ssh_answers else "   (does not answer)"),
        ]
        return "\n".join(lines)
