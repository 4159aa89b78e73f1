"""Section about the run page: 100,000 points, from Airflow's records to the pixels of a headless Chromium."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.bench.support import Bench, Figure, Section
from llm_bridge.monitoring import history
from llm_bridge.monitoring.curves import Curves
from llm_bridge.monitoring.run_record import LIVE_XCOM
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import Measures
from llm_bridge.ui import view
from llm_bridge.ui.database import RunRecords, TaskRecord
from llm_bridge.ui.routes import STATIC

POINTS, CURVES = 100_000, 40
TIMEOUT_SECONDS = 180.0
# As in run.js.
CURVE_POINTS = 600
# Injected before the page's own script: when curves have arrived, and when the frame after them was drawn.
MEASURE = """
const read = Response.prototype.json;
let times = 0;
Response.prototype.json = function () {
  const begin = performance.now();
  const answer = read.call(this);
  if (!this.url.includes("/curves")) return answer;
  return answer.then((values) => {
    setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(() => {
      times += 1;
      fetch("/measured", { method: "POST", body: JSON.stringify({
        number: times, begin, end: performance.now(), canvases: document.querySelectorAll("canvas").length }) });
    })));
    return values;
  });
};
"""


def records(steps: int) -> RunRecords:
    """Return the records of a run that trains, with CURVES curves of some steps."""
    names = [
        "train/loss",
        "actor/entropy",
        "critic/score/mean",
        *(f"val-core/m{n}" for n in range(CURVES - 3)),
    ]
    lines = []
    for step in range(1, steps + 1):
        values = {name: math.sin(step / (9 + n)) + step % 7 / 7 for n, name in enumerate(names)}
        lines.append(json.dumps({"step": step, "data": values}))
    curves = Curves()
    text = "\n".join(lines) + "\n"
    curves.read({attempt_dir.METRICS: Measures(text, len(text))})
    stored = curves.to_json()
    live = {
        "directory": "/w/1",
        "state": "RUNNING",
        "started": 5.0,
        "progress": {"step": steps},
        "curves": stored,
    }
    attempt = {
        "directory": "/w/1",
        "name": "Slurm job 1",
        "job_id": "1",
        "gpus": 8,
        "submitted": 1.0,
        "started": 5.0,
    }
    task = TaskRecord(
        "sft.train",
        "deferred",
        1,
        3,
        1.0,
        None,
        {LIVE_XCOM: live},
        {history.STORE_KEY: {"attempts": [attempt]}},
    )
    return RunRecords("d", "r", "running", 0.0, 1.0, None, {}, {"sft.train": task})


class _Handler(BaseHTTPRequestHandler):
    found: RunRecords
    measured: list[dict[str, Any]]

    def do_GET(self) -> None:
        """Answer as the API server does, without its login."""
        path = self.path.partition("?")[0]
        if path == "/measure.js":
            self._send(MEASURE.encode(), "text/javascript")
        elif path.endswith("/curves"):
            self._send(
                json.dumps({"curves": view.curves(self.found, CURVE_POINTS)}).encode(), "application/json"
            )
        elif path.startswith("/api/runs/"):
            # A new step: the page reads the curves again.
            self.found.tasks["sft.train"].xcoms[LIVE_XCOM]["updated"] = time.time()
            self._send(json.dumps(view.run(self.found)).encode(), "application/json")
        elif path.startswith("/static/"):
            kind = {"js": "text/javascript", "css": "text/css"}.get(path.rpartition(".")[2], "text/plain")
            self._send((STATIC / path.rpartition("/")[2]).read_bytes(), kind)
        elif path == "/run":
            text = (STATIC / "index.html").read_text()
            own = '<script src="static/uPlot'
            self._send(text.replace(own, f'<script src="measure.js"></script>\n{own}').encode(), "text/html")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Take a measurement."""
        self.measured.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._send(b"{}", "application/json")

    def _send(self, body: bytes, kind: str) -> None:
        packed = gzip.compress(body, 5)
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def _server(found: RunRecords) -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"found": found, "measured": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()


def _browse(found: RunRecords) -> dict[str, Any]:
    """Open the page; return milliseconds of the first paint with curves, and of the first update."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        return {"browser": None}
    with _server(found) as (url, handler), tempfile.TemporaryDirectory() as profile:
        argv = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        argv += ["--remote-debugging-port=0", "--window-size=1400,2000", f"{url}/run?dag_id=d&run_id=r"]
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while len(handler.measured) < 2 and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.2)
            process.terminate()
        shown = handler.measured
    result: dict[str, Any] = {
        "browser": Path(chromium).name,
        "canvases": shown[0]["canvases"] if shown else 0,
    }
    if shown:
        result["first_paint_ms"] = round(shown[0]["end"])
    if len(shown) > 1:
        result["update_ms"] = round(shown[1]["end"] - shown[1]["begin"])
    return result


def run(bench: Bench) -> dict[str, Any]:
    """Make a run of 100,000 points, and show it."""
    begin = time.process_time()
    found = records(POINTS // CURVES)
    made = time.process_time() - begin
    begin = time.process_time()
    body = json.dumps({"curves": view.curves(found, CURVE_POINTS)}).encode()
    return {
        "points": POINTS,
        "curves": CURVES,
        "read_cpu_s": round(made, 3),
        "answer_cpu_s": round(time.process_time() - begin, 3),
        "answer_kb": round(len(gzip.compress(body, 5)) / 1000, 1),
        **_browse(found),
    }


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return the milliseconds of the page."""
    note = (
        f"Run page: {found['points']} points in {found['curves']} curves, {found.get('browser') or 'no browser'}, "
        f"{found.get('canvases', 0)} canvases; thinned to {CURVE_POINTS} points a curve, {found['answer_kb']} kB packed"
    )
    return [
        Figure("run page, first paint with curves, ms", found.get("first_paint_ms"), 1000, note=note),
        Figure("run page, update of the curves, ms", found.get("update_ms"), 100),
        Figure("run page, server's CPU for the curves, ms", round(found["answer_cpu_s"] * 1000, 1)),
    ]


SECTION = Section("page", "Run page", run, figures, needs_cluster=False)
