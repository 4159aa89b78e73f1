"""TCP relay from a port on the machine's loopback to a host of a cluster, without a route between the two.

    python3 relay.py LISTEN_IP:PORT NETWORK_NAMESPACE TARGET_NAMESPACE TARGET_IP:PORT

The process runs in NETWORK_NAMESPACE (the cluster's bridge), so that disconnecting the target affects it. A socket
stays in the namespace in which it was made: for listening sockets the process returns to its first namespace. It
listens only while the target's program does: with a stopped sshd, clients get "connection refused", as on a real host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
# Between two checks whether the target listens; each walks the kernel's whole socket table.
POLL_SECONDS = 0.5
CONNECT_TIMEOUT = 15.0
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: int) -> None:
    """Move this process into the network namespace of a file descriptor (os.setns is Python 3.12)."""
    if _libc.setns(namespace, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


class Listening:
    """Check whether a port in a network namespace is listened on, without connecting to it."""

    def __init__(self, ip: str, port: int) -> None:
        """Open the tables of the current network namespace; the open files stay bound to it."""
        self.tables = [os.open(f"/proc/self/net/{name}", os.O_RDONLY) for name in ("tcp", "tcp6")]
        own = socket.inet_aton(ip)[::-1].hex().upper()
        self.wanted = {f"{address}:{port:04X}" for address in (own, "0" * 8, "0" * 32)}

    def __call__(self) -> bool:
        """Return whether the port is listened on now."""
        for table in self.tables:
            os.lseek(table, 0, os.SEEK_SET)
            data = b""
            while part := os.read(table, 65536):
                data += part
            for line in data.decode().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1] in self.wanted:  # 0A: LISTEN
                    return True
        return False


class Relay:
    """Relay of one port."""

    def __init__(
        self, listen: tuple[str, int], target: tuple[str, int], network: str, target_network: str
    ) -> None:
        self.listen, self.target = listen, target
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.network = os.open(network, os.O_RDONLY)
        there = os.open(target_network, os.O_RDONLY)
        enter(there)
        self.target_listens = Listening(*target)
        os.close(there)
        enter(self.network)

    def listening_socket(self) -> socket.socket:
        """Return a socket that listens in the namespace in which this process was started."""
        enter(self.home)
        try:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self.listen)
            sock.listen(512)
            return sock
        finally:
            enter(self.network)

    async def serve(self) -> None:
        """Listen whenever the target does, forever."""
        server: asyncio.Server | None = None
        while True:
            listens = self.target_listens()
            if listens and server is None:
                server = await asyncio.start_server(self.handle, sock=self.listening_socket())
            elif not listens and server is not None:
                server.close()
                server = None
            await asyncio.sleep(POLL_SECONDS)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the target; reset the client's connection if the target is unreachable."""
        try:
            far_reader, far_writer = await asyncio.wait_for(
                asyncio.open_connection(*self.target), CONNECT_TIMEOUT
            )
        except (OSError, TimeoutError) as error:
            print(f"{self.target} unreachable: {error!r}", file=sys.stderr, flush=True)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        for end in (writer, far_writer):
            end.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction until it ends, and forward a half-close."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


def _pair(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main() -> None:
    """Run the relay; arguments as in the module's docstring."""
    listen, network, target_network, target = sys.argv[1:]
    relay = Relay(_pair(listen), _pair(target), network, target_network)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(relay.serve())


if __name__ == "__main__":
    main()
