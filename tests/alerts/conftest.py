"""A mail server and a web server on loopback that keep what they get, and Airflow connections to them."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import threading
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiosmtpd.controller import Controller


@pytest.fixture(autouse=True)
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes ``include/alerts.yaml``."""
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/")
    return lambda **values: (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(values))  # type: ignore


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EmailMessage]]:
    """What the mail server got; connection ``mail``."""
    got: list[EmailMessage] = []

    class Keep:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            got.append(email.message_from_bytes(envelope.content, policy=email.policy.default))  # type: ignore
            return "250 kept"

    controller = Controller(Keep(), hostname="127.0.0.1", port=free_port())
    controller.start()
    plain = {"disable_ssl": True, "disable_tls": True}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": controller.port, "extra": plain}
    monkeypatch.setenv("AIRFLOW_CONN_MAIL", json.dumps(connection))
    yield got
    controller.stop()


class Posts(list[tuple[str, dict[str, Any]]]):
    """(path, JSON) of each request.

    :param status: what is answered.
    """

    status = 200
    port = 0


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Posts]:
    """What the web server got; connections ``hook``, ``slack`` and ``apprise``."""
    got = Posts()

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(got.status)
            self.end_headers()
            self.wfile.write(b"ok")  # what Slack answers

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keep)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    got.port = server.server_port
    at = f"127.0.0.1:{server.server_port}"
    slack = {"conn_type": "slackwebhook", "host": f"http://{at}/services", "password": "T0/B0/secret-token"}
    apprise = {"conn_type": "apprise", "extra": {"config": {"path": f"json://{at}/apprise", "tag": "ops"}}}
    monkeypatch.setenv("AIRFLOW_CONN_HOOK", f"http://{at}")
    monkeypatch.setenv("AIRFLOW_CONN_SLACK", json.dumps(slack))
    monkeypatch.setenv("AIRFLOW_CONN_APPRISE", json.dumps(apprise))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield got
    server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
