"""Server that answers W&B's client and the doctor: as a server that works, refuses, or is down."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What api.wandb.ai answers to a key that it does not know, and to one that may not write there.
REFUSALS = {401: "user is not logged in", 403: "permission denied"}


class WandbServer(ThreadingHTTPServer):
    """The server. After a request for ``/die`` it is down.

    Args:
        status: Status code of its answers.

    Attributes:
        users: Key -> user and teams that it belongs to, for a request for its ``viewer``.
    """

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.users: dict[str, tuple[str, list[str]]] = {}

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environ(self) -> dict[str, str]:
        """Variables with which the client reports to this server."""
        key = {"WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false", "NO_PROXY": "127.0.0.1"}
        return {"WANDB_BASE_URL": self.url, "WANDB_X_DISABLE_STATS": "true", **key}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/die":
            self.server.status = 503
        status = 200 if self.path == "/die" else self.server.status
        answer: dict[str, Any] = {"data": self._data(body)} if status == 200 else {}
        if status in REFUSALS:
            answer = {"errors": [{"message": REFUSALS[status]}]}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _data(self, body: bytes) -> dict[str, Any]:
        if b"viewer" not in body:
            return _created(body)
        # As api.wandb.ai, which answers a key that it does not know with no viewer.
        scheme, _, encoded = (self.headers["Authorization"] or "").partition(" ")
        key = base64.b64decode(encoded).decode().partition(":")[2] if scheme == "Basic" else ""
        if key not in self.server.users:
            return {"viewer": None}
        name, teams = self.server.users[key]
        edges = [{"node": {"name": team}} for team in teams]
        return {"viewer": {"username": name, "teams": {"edges": edges}}}


def _created(body: bytes) -> dict[str, Any]:
    """Return what creates a run; the client copes with nothing as the answer to all else."""
    request = json.loads(body) if body.startswith(b"{") else {}
    if "upsertBucket" not in request.get("query", ""):
        return {}
    run, project = request["variables"].get("name"), request["variables"].get("project")
    owner = {"id": "p", "name": project, "entity": {"id": "e", "name": "acme"}}
    known = {"description": None, "config": "{}", "sweepName": None, "historyLineCount": 0}
    bucket = {"id": "b", "name": run, "displayName": run, "project": owner, **known}
    return {"upsertBucket": {"bucket": bucket, "inserted": True}}
