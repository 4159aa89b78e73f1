"""Follow many jobs with llm-bridge or a peer in a process of its own, and measure it: ends, RPCs, connections, CPU."""

from __future__ import annotations

import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench.support import (
    FOLDER,
    PEER_CONNECTION,
    POLL_SECONDS,
    Bench,
    Use,
    child,
    difference,
    load,
    peers_python,
    spread,
    use_of,
)
from benchmarks.bench.watchers import protocol
from testing import paths
from testing.waiting import until

# For a while after a submission pollers ask more often; figures of waiting jobs begin after it.
SETTLE_SECONDS = 35.0
# Whole intervals of squeue: a part of one would be rounded up to a call.
WAITING_SECONDS, ENDING_SECONDS = 4 * POLL_SECONDS, 2 * POLL_SECONDS
# A watcher that has not noticed an end for so long after the last one is stopped.
PATIENCE_SECONDS = 150.0

OURS = "llm-bridge"
_WRITTEN = re.compile(rf"{protocol.MARK}(\d+\.\d+)")
# Name in the report -> module in watchers/.
WATCHERS = {
    OURS: "ours",
    "SSHRemoteJobOperator": "ssh_remote_job",
    "SSHOperator + sensor": "ssh_sensor",
    "dagster-slurm": "dagster_steps",
    "submitit": "submitit_watcher",
}


def follow(bench: Bench, name: str, jobs: int, window: float, *, loud: bool = False) -> dict[str, Any]:
    """Let a watcher follow jobs that end at random within a window; return its figures.

    Args:
        bench: The cluster.
        name: Key of WATCHERS.
        jobs: Number of jobs, which all run when the window begins.
        window: In seconds.
        loud: The jobs write ten lines a second during the window, and all end after it.
    """
    key = f"{name} {jobs}{' loud' if loud else ''}"
    if key in bench.shared:
        found: dict[str, Any] = bench.shared[key]
        return found
    bench.site.end_jobs()
    folder = bench.new_folder("run")
    chance = random.Random(jobs)
    offsets = [window if loud else round(chance.uniform(0, window), 3) for _ in range(jobs)]
    request = {
        "folder": str(folder),
        "offsets": offsets,
        "loud": loud,
        "cluster": bench.site.name,
        "workspace": str(bench.site.workspace),
        "ssh_conn_id": PEER_CONNECTION,
        **bench.connection,
    }
    argv, options = _command(bench, name, folder)
    log = FOLDER / "logs" / f"{WATCHERS[name]}-{jobs}.log"
    behind: list[float] = []

    def on_line(line: str) -> None:
        now = time.time()
        behind.extend(now - float(written) for written in _WRITTEN.findall(line))

    first, result = bench.counters(), {"jobs": jobs, "window_s": window}
    with child(argv, log, **options) as process:
        assert process.stdin
        events = Events(process, on_line)
        events.next(120)
        # What an import-only process takes.
        result["imported_mb"] = round(use_of(process.pid).bytes / 1e6, 1)
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        began = time.monotonic()
        if not events.next(900):
            raise SystemExit(f"bench: {name} did not submit, see {log}:\n{log.read_text()[-2000:]}")
        result["submitted_s"] = round(time.monotonic() - began, 1)
        until(
            lambda: len(list(folder.glob(f"{protocol.STARTED}*"))) == jobs,
            600,
            1,
            f"the start of {jobs} jobs",
        )
        time.sleep(SETTLE_SECONDS)
        result["waiting"] = measured(bench, process, WAITING_SECONDS)
        begin = time.time() + 1.0
        (folder / "go.tmp").write_text(f"{int(begin * 1e6)}\n")
        (folder / "go.tmp").rename(folder / protocol.GO)
        result["ending"] = measured(bench, process, ENDING_SECONDS)
        times = _noticed(events, jobs)
    result["connections"] = difference(bench.counters(), first)
    ends = {
        path.suffix[1:]: float(path.read_text())
        for path in folder.glob(f"{protocol.ENDED}*")
        if path.stat().st_size
    }
    late = [times[int(number)] - end for number, end in ends.items() if int(number) in times]
    result |= {"late_s": spread(late), "all_late_s": sorted(round(value, 3) for value in late)}
    result |= {"not_noticed": jobs - len(late), "load": load()}
    if loud:
        result |= {"behind_s": spread(behind), "lines_a_second": round(len(behind) / window, 1)}
    bench.site.end_jobs()
    bench.shared[key] = result
    return result


def _command(bench: Bench, name: str, folder: Path) -> tuple[list[str | Path], dict[str, Any]]:
    module = f"benchmarks.bench.watchers.{WATCHERS[name]}"
    environment = {**os.environ, "PYTHONPATH": f"{paths.PLUGINS}:{paths.ROOT}"}
    options = {"cwd": paths.ROOT, "env": environment}
    if name == "dagster-slurm":
        return [peers_python(), "-m", module], options | {
            "env": {"PATH": os.environ["PATH"], "HOME": str(FOLDER.resolve()), "PYTHONPATH": str(paths.ROOT)}
        }
    if name == "submitit":
        here = Path(__file__).with_name("watchers")
        copy = folder / "src" / "benchmarks" / "bench" / "watchers"
        copy.mkdir(parents=True)
        for file in ("protocol.py", "submitit_watcher.py"):
            shutil.copy(here / file, copy)
        # The jobs' Python: user svc may be unable to enter the folder of the one that Airflow's was made from.
        packages = next((peers_python().parents[1] / "lib").glob("python*/site-packages"))
        argv = ["env", f"PYTHONPATH={folder}/src:{packages}", str(paths.cluster_python()), "-m", module]
        return [*bench.cluster.exec_argv("login", argv, "svc")], {}
    return [sys.executable, "-m", module], options


def measured(bench: Bench, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Return RPCs a minute, CPU and memory of a watcher during some seconds."""
    before, types, use, begin = bench.counters(), bench.types(), use_of(process.pid), time.monotonic()
    time.sleep(seconds)
    took, now, after = time.monotonic() - begin, use_of(process.pid), bench.counters()
    counted = difference(after, before)
    return {
        "seconds": round(took, 1),
        "slurmctld_a_minute": round(counted.get("slurmctld", 0) * 60 / took, 1),
        "slurmdbd_a_minute": round(counted.get("slurmdbd", 0) * 60 / took, 1),
        "connections_a_minute": round(counted.get("connections", 0) * 60 / took, 1),
        "refused_connections": counted.get("refused", 0),
        "types": difference(bench.types(), types),
        "cpu_percent": round(100 * (now.cpu_s - use.cpu_s) / took, 1),
        "memory_mb": round(now.bytes / 1e6, 1),
        "load": load(),
    }


@contextmanager
def triggers(
    jobs: Sequence[tuple[str, str, str]], name: str, on_line: Callable[[str], None] | None = None
) -> Iterator[tuple[subprocess.Popen[str], Events, Use]]:
    """Run llm-bridge's triggers for existing jobs in a process of its own, in the context.

    Args:
        jobs: Cluster, id and attempt's directory of each job.
        name: Name of the process's log.
        on_line: Called with each line that the triggers log.

    Yields:
        The process, its events, and what it used before it followed anything.
    """
    log = FOLDER / "logs" / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": f"{paths.PLUGINS}:{paths.ROOT}"}
    argv = [sys.executable, "-m", "benchmarks.bench.watchers.existing"]
    with child(argv, log, cwd=paths.ROOT, env=environment) as process:
        assert process.stdin
        events = Events(process, on_line)
        events.next(120)
        before = use_of(process.pid)
        process.stdin.write(json.dumps({"jobs": jobs}) + "\n")
        process.stdin.flush()
        if not events.next(300):
            raise SystemExit(f"bench: the triggers did not start, see {log}:\n{log.read_text()[-2000:]}")
        yield process, events, before


class Events(threading.Thread):
    """Events of a watcher; a thread reads them, so that none waits in a buffer."""

    def __init__(self, process: subprocess.Popen[str], on_line: Callable[[str], None] | None = None) -> None:
        super().__init__(daemon=True)
        self._process, self._found, self._on_line = process, queue.Queue[dict[str, Any]](), on_line
        self.start()

    def run(self) -> None:
        """Read until the watcher ends."""
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                if self._on_line:
                    self._on_line(line)  # a log line
                continue
            if isinstance(event, dict) and "event" in event:
                self._found.put(event)
        self._found.put({})

    def next(self, seconds: float) -> dict[str, Any]:
        """Return the next event; an empty one if there is none in time, or the watcher has ended."""
        try:
            return self._found.get(timeout=seconds)
        except queue.Empty:
            return {}


def _noticed(events: Events, jobs: int) -> dict[int, float]:
    times: dict[int, float] = {}
    while len(times) < jobs and (event := events.next(PATIENCE_SECONDS)):
        times[event["number"]] = event["time"]
    return times
