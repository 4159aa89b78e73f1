"""The helper `ray_request`: requests to a Ray dashboard with the token of its attempt."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.login import ray_request
from llm_bridge.remote.messages import RayHttpAnswer, RayHttpRequest, decode, encode


class Dashboard(BaseHTTPRequestHandler):
    """Answers with what it was sent, and with HTTP 404 below /missing."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        seen = {
            "method": self.command,
            "path": self.path,
            "token": self.headers.get("Authorization"),
            "body": self.rfile.read(length).decode(),
        }
        self.send_response(404 if self.path.startswith("/missing") else 200)
        self.end_headers()
        self.wfile.write(json.dumps(seen).encode())

    do_GET = do_DELETE = do_POST

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Path]:
    """The attempt's directory of a Ray cluster that runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster = {"dashboard": f"http://127.0.0.1:{server.server_port}"}
        attempt_dir.write_json(str(tmp_path / attempt_dir.CLUSTER), cluster)
        attempt_dir.write(str(tmp_path / attempt_dir.RAY_TOKEN), "secret\n")
        yield tmp_path
        server.shutdown()


def send(attempt: Path, method: str, path: str, body: Any = None) -> RayHttpAnswer:
    request = RayHttpRequest(str(attempt), method, path, body, 5.0)
    answer: RayHttpAnswer = decode(RayHttpAnswer, ray_request.main(encode(request)))
    return answer


def test_a_request_carries_method_path_body_and_the_clusters_token(
    attempt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    answer = send(attempt, "POST", "/api/jobs/", {"entrypoint": "x"})
    assert (answer.status, answer.unreachable) == (200, "")
    assert json.loads(answer.text) == {
        "method": "POST", "path": "/api/jobs/", "token": "Bearer secret", "body": '{"entrypoint": "x"}'
    }  # fmt: skip
    assert json.loads(send(attempt, "DELETE", "/api/jobs/7").text)["body"] == ""


def test_an_http_error_is_an_answer(attempt: Path) -> None:
    answer = send(attempt, "GET", "/missing")
    assert answer.status == 404 and "/missing" in answer.text


def test_a_cluster_that_is_not_up_or_does_not_answer_is_unreachable(attempt: Path, tmp_path: Path) -> None:
    answer = send(tmp_path / "none", "GET", "/")
    assert answer.status == 0 and attempt_dir.CLUSTER in answer.unreachable
    attempt_dir.write_json(str(attempt / attempt_dir.CLUSTER), {"dashboard": "http://127.0.0.1:1"})
    assert "http://127.0.0.1:1 does not answer: Connection refused" in send(attempt, "GET", "/").unreachable
