"""A mail server and a web server on loopback that keep what they get, and Airflow's connections to them."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller


class Mails(list[EmailMessage]):
    """What a mail server got.

    :param connection: Airflow's to it, as JSON.
    """

    connection = ""


class Posts(list[tuple[str, dict[str, Any]]]):
    """What a web server got: (path, JSON) of each request.

    :param status: what is answered.
    """

    status = 200
    port = 0


@contextmanager
def mail_server() -> Iterator[Mails]:
    """While it is up."""
    got = Mails()

    class Keep:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            got.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
            return "250 kept"

    controller = Controller(Keep(), hostname="127.0.0.1", port=free_port())
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
    """While it is up. Proxies have to be kept away from it (NO_PROXY)."""
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
    try:
        yield got
    finally:
        server.shutdown()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
