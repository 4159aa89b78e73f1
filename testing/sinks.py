"""Mail server and web server on loopback that store what they receive, with Airflow's connections to them."""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from testing.airflow import free_port


class Mails(list[EmailMessage]):
    """Mails that a mail server received.

    Attributes:
        connection: Airflow connection to the server, as JSON.
    """

    connection = ""


class Posts(list[tuple[str, dict[str, Any]]]):
    """Requests that a web server received: (path, JSON) of each.

    Attributes:
        status: HTTP status of the responses.
        port: Port of the server.
    """

    status = 200
    port = 0


@contextmanager
def mail_server() -> Iterator[Mails]:
    """Run a mail server in the context."""
    got = Mails()

    class Keep:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            got.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
            return "250 kept"

    controller = Controller(Keep(), hostname="127.0.0.1", port=free_port(0))
    controller.start()
    plain = {"disable_ssl": True, "disable_tls": True}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": controller.port, "extra": plain}
    got.connection = json.dumps(connection)
    try:
        yield got
    finally:
        controller.stop()


@contextmanager
def web_server() -> Iterator[Posts]:
    """Run a web server in the context; set NO_PROXY, because requests must not go to a proxy."""
    got = Posts()

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(got.status)
            self.end_headers()
            self.wfile.write(b"ok")  # as Slack's response

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keep)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    got.port = server.server_port
    try:
        yield got
    finally:
        server.shutdown()
