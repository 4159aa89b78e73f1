"""What the real W&B client prints when its server refuses the key, and that this is told as what it is."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.failures.evidence import Evidence, in_lines
from llm_bridge.failures.rules import diagnose

# What api.wandb.ai answers to a key that it does not know, and to one that may not write there.
ANSWERS = {
    401: b'{"errors":[{"message":"user is not logged in"}]}',
    403: b'{"errors":[{"message":"permission denied"}]}',
}
INIT = "import wandb; wandb.init(project='p', entity='acme')"


@pytest.fixture(params=ANSWERS)
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A web server that refuses everything."""

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(request.param)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(ANSWERS[request.param])

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_key_that_is_refused_is_named_as_the_cause(
    server: str, cluster_python: str, tmp_path: Path
) -> None:
    environ = {**os.environ, "WANDB_BASE_URL": server, "WANDB_API_KEY": "0" * 40, "NO_PROXY": "127.0.0.1"}
    environ |= {"WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    done = subprocess.run(
        [cluster_python, "-c", INIT], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode
    lines = done.stderr.splitlines()
    found = diagnose(Evidence(found=in_lines(lines), last_line=lines[-1]))
    assert found.kind == "token_refused" and "wandb_entity" in found.advice, done.stderr
