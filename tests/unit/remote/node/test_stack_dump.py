"""The stack dump: processes of this job, in the order of their use for the diagnosis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import llm_bridge.remote.node as node

SOURCE = Path(node.__file__).parent / "stack_dump.py"
PY_SPY = """#!/bin/sh
echo "Process $4: python -c secret program"
echo "Thread $4 (idle)"
for n in $(seq 40); do echo "    frame_$n (x.py:$n)"; done
"""


@pytest.fixture
def dump(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module without its last line, which runs it."""
    module = ModuleType("stack_dump")
    source = SOURCE.read_text().rpartition("\nmain()")[0]
    exec(compile(source, str(SOURCE), "exec"), module.__dict__)
    return module


@pytest.fixture
def job(tmp_path: Path) -> Iterator[dict[str, int]]:
    """Processes of job 4242: one that runs, one that is stopped, a daemon of Ray, and the dump's own step."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    commands = {
        "running": (["sleep", "60"], "0"),
        "stopped": (sleeps, "0"),
        "daemon": ([*sleeps, "ray-head-guard"], "0"),
        "own": (sleeps, "9"),
    }
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4242"}
    started = {
        name: subprocess.Popen(argv, env={**environ, "SLURM_STEP_ID": step})
        for name, (argv, step) in commands.items()
    }
    started["stopped"].send_signal(signal.SIGSTOP)
    while "(stopped)" not in Path(f"/proc/{started['stopped'].pid}/status").read_text():
        time.sleep(0.02)
    yield {name: process.pid for name, process in started.items()}
    for process in started.values():
        process.kill()
        process.wait()


def test_processes_of_the_job_are_ordered_by_their_use_and_those_of_the_dump_omitted(
    dump: ModuleType, job: dict[str, int]
) -> None:
    found = [int(pid) for pid in dump.job_processes("4242", "9")]
    assert found == [job["stopped"], job["running"], job["daemon"]]


def run(step: str = "9", **variables: str) -> list[str]:
    environ = {**os.environ, "SLURM_JOB_ID": "4242", "SLURM_STEP_ID": step, **variables}
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-"], input=SOURCE.read_bytes(), env=environ, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


def test_each_line_starts_with_the_node_and_a_process_has_its_state_and_a_limited_stack(
    job: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "py-spy").write_text(PY_SPY)
    (tmp_path / "py-spy").chmod(0o755)
    lines = run(PATH=f"{tmp_path}:{os.environ['PATH']}")
    host = os.uname().nodename
    assert all(line.startswith(f"{host}: ") for line in lines)
    assert f"process {job['stopped']} is T (stopped)" in lines[0]
    assert lines[1] == f"{host}:   Thread {job['stopped']} (idle)"
    assert sum("frame_" in line for line in lines[:26]) == 24, "25 lines of a process, the thread included"
    assert "frame_" not in lines[26]
    assert not any("secret program" in line for line in lines)


def test_without_processes_there_is_one_line() -> None:
    assert run(SLURM_JOB_ID="4243") == [f"{os.uname().nodename}: the job has no process here"]
