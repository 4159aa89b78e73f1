"""Which of a node's addresses Ray uses, and whether a port answers."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

SIOCGIFADDR = 0x8915  # netdevice(7): IPv4 address of an interface


def own_address(node: str) -> str:
    """node_address with the interface that the batch script was given."""
    return node_address(node, os.environ.get("LLM_BRIDGE_NETWORK_INTERFACE", ""))


def node_address(node: str, pattern: str = "") -> str:
    """IPv4 address of this machine that the other nodes reach it at.

    Args:
        node: the name that Slurm has for this machine.
        pattern: the cluster file's `network_interface`; empty means the address that the name resolves to.

    Raises:
        RuntimeError: there is no such interface, or no address.
    """
    found = {name: address for _, name in socket.if_nameindex() if (address := _interface_address(name))}
    if pattern:
        names = matching(pattern, list(found))
        if names:
            return found[names[0]]
        raise RuntimeError(
            f"network_interface {pattern!r} of the cluster file is not on {node}; it has"
            f" {', '.join(f'{name} ({address})' for name, address in found.items()) or 'none with an IPv4 address'}"
        )
    try:
        address = socket.getaddrinfo(node, None, socket.AF_INET)[0][4][0]
    except OSError:
        address = "127.0.0.1"
    if not address.startswith("127."):
        return address
    # Some systems name themselves 127.0.1.1 in /etc/hosts, where no other node would find them.
    outside = [address for address in found.values() if not address.startswith("127.")]
    if not outside:
        raise RuntimeError(
            f"{node} has no IPv4 address but loopback; set network_interface in the cluster file"
        )
    return outside[0]


def matching(pattern: str, interfaces: list[str]) -> list[str]:
    """Interfaces that a pattern means to NCCL: `eth0,ib` are beginnings of names, `=eth0` is the very name."""
    exact, names = pattern.startswith("="), pattern.lstrip("=").split(",")
    return [
        have for name in names for have in interfaces if (have == name if exact else have.startswith(name))
    ]


def answers(address: str, timeout: float = 3.0) -> bool:
    """Whether something accepts connections at IP:PORT."""
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout).close()
    except OSError:
        return False
    return True


def _interface_address(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            reply = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
        except OSError:
            return None  # no IPv4 address
    return socket.inet_ntoa(reply[20:24])
