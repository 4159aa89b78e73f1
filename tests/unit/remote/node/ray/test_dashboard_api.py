"""Requests of the head guard to Ray's dashboard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llm_bridge.remote.node.ray.dashboard_api import Dashboard, DashboardUnavailable


class Handler(BaseHTTPRequestHandler):
    """Answers as Ray's dashboard does: everything but its health needs the token."""

    healthy = True

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer token"
        if self.path == "/api/gcs_healthz":
            status, body = (200, "success") if self.healthy else (503, "GCS is not ready")
        elif not allowed:
            status, body = 401, "no token"
        elif self.path.startswith("/api/v0/nodes?limit="):
            status, body = 200, json.dumps({"data": {"result": {"result": [{"node_name": "n1"}]}}})
        elif self.path == "/api/jobs/":
            status, body = 200, "<html>"
        else:
            status, body = 404, ""
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setattr(Handler, "healthy", True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nodes_are_read_with_the_token_and_without_a_proxy(url: str) -> None:
    assert Dashboard(url, "token").nodes() == [{"node_name": "n1"}]
    with pytest.raises(DashboardUnavailable, match="HTTP 401"):
        Dashboard(url, "other").nodes()


def test_a_status_is_read_without_the_token_unless_one_is_given(url: str) -> None:
    dashboard = Dashboard(url, "token")
    assert dashboard.status("/api/jobs/") == 401
    assert dashboard.status("/api/jobs/", "token") == 200


def test_an_unhealthy_gcs_is_an_error_with_its_text(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Dashboard(url, "token").check_gcs()
    monkeypatch.setattr(Handler, "healthy", False)
    with pytest.raises(DashboardUnavailable, match="HTTP 503: GCS is not ready"):
        Dashboard(url, "token").check_gcs()


def test_an_answer_that_is_no_json_and_no_answer_are_errors(url: str) -> None:
    with pytest.raises(DashboardUnavailable, match="returned no JSON"):
        Dashboard(url, "token").jobs()
    with pytest.raises(DashboardUnavailable, match="refused"):
        Dashboard("http://127.0.0.1:1", "token").nodes()
