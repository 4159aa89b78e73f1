"""Choose the address of a node that Ray uses, and check if a port accepts connections."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

SIOCGIFADDR = 0x8915  # netdevice(7): IPv4 address of an interface


def own_address(node: str) -> str:
    """Return :func:`node_address` for the interface that the batch script has set."""
    return node_address(node, os.environ.get("LLM_BRIDGE_NETWORK_INTERFACE", ""))


def node_address(node: str, pattern: str = "") -> str:
    """Return the IPv4 address under which the other nodes reach this machine.

    Args:
        node: This machine's name in Slurm.
        pattern: The cluster file's `network_interface`; empty means the address to which the name resolves.

    Raises:
        RuntimeError: There is no such interface, or no address.
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
        resolved = str(socket.getaddrinfo(node, None, socket.AF_INET)[0][4][0])
    except OSError:
        resolved = "127.0.0.1"
    if not resolved.startswith("127."):
        return resolved
    # Some systems resolve their own name to 127.0.1.1 by /etc/hosts, which other nodes cannot reach.
    outside = [address for address in found.values() if not address.startswith("127.")]
    if not outside:
        raise RuntimeError(
            f"{node} has no IPv4 address except loopback; set network_interface in the cluster file"
        )
    return outside[0]


def matching(pattern: str, interfaces: list[str]) -> list[str]:
    """Return the interfaces that a pattern selects in NCCL: `eth0,ib` are prefixes, `=eth0` is the exact name."""
    exact, names = pattern.startswith("="), pattern.lstrip("=").split(",")
    return [
        have for name in names for have in interfaces if (have == name if exact else have.startswith(name))
    ]


def answers(address: str, timeout: float = 3.0) -> bool:
    """Return True if IP:PORT accepts connections.

    Args:
        address: IP:PORT.
        timeout: Limit in seconds.
    """
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
