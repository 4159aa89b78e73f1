"""Command line: `python -m testing.local_hub --root DIR [--host ADDRESS] [--port N] [--tokens FILE]`."""

from __future__ import annotations

import argparse
import fcntl
import socket
from pathlib import Path

import uvicorn

from .accounts import write_default_tokens
from .app import build_app
from .faults import Faults
from .hub import Hub


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m testing.local_hub", description="Small Hugging Face Hub for tests and demos."
    )
    parser.add_argument("--root", type=Path, required=True, help="folder for the server's files")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8090, help="port; 0 chooses a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens",
        type=Path,
        help='JSON file {"TOKEN": {"user": NAME, "role": "read" or "write", "orgs": [NAME, ...]}} '
        "(default: ROOT/tokens.json, created with random tokens if missing)",
    )
    parser.add_argument(
        "--part-size", type=int, default=100 * 1024 * 1024, metavar="BYTES",
        help="files larger than this are uploaded in parts of this size (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--faults", action="store_true", help="let every client order faults: see faults.py")
    parser.add_argument("--access-log", action="store_true", help="print a line per request")
    return parser.parse_args()


def _take_root(root: Path) -> object:
    """Allow one server at a time per folder: the lock of commits is effective within one process only."""
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / "server.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(
            f"local_hub: another server already uses {root}; stop it or choose another --root"
        ) from None
    return lock


def main() -> None:
    """Bind, print the address, then serve: clients can connect as soon as the line is printed."""
    arguments = _arguments()
    if arguments.part_size < 1:
        raise SystemExit("local_hub: --part-size must be at least 1 byte")
    lock = _take_root(arguments.root)
    tokens = arguments.tokens or arguments.root / "tokens.json"
    if arguments.tokens is None and not tokens.exists():
        write_default_tokens(tokens)
    hub = Hub.open(arguments.root, tokens, arguments.part_size)

    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    try:
        listener = socket.create_server((arguments.host, arguments.port), family=family, backlog=128)
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        raise SystemExit(
            f"local_hub: cannot listen on {where}: {error}; choose another --host or --port"
        ) from error
    shown = f"[{arguments.host}]" if family == socket.AF_INET6 else arguments.host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    print(f"local_hub: serving {arguments.root.resolve()} at {address} (tokens: {tokens})", flush=True)
    app = Faults(build_app(hub)) if arguments.faults else build_app(hub)
    config = uvicorn.Config(app, log_level="info" if arguments.access_log else "warning")
    uvicorn.Server(config).run(sockets=[listener])
    del lock  # held until here


if __name__ == "__main__":
    main()
