"""Parts of ``make bench`` that decide what its figures mean."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench import page
from benchmarks.bench.support import Figure
from benchmarks.bench.watchers import protocol
from llm_bridge.slurm import status


@pytest.mark.parametrize(
    ("ours", "at_least", "met"),
    [(3.9, False, True), (4.1, False, False), (4.1, True, True), (None, True, None)],
)
def test_a_goal_is_a_limit_in_its_own_direction(ours: float | None, at_least: bool, met: bool | None) -> None:
    assert Figure("x", ours, 4, at_least=at_least).met is met


def test_a_row_shows_a_missed_goal_and_the_ratio_to_each_peer() -> None:
    figure = Figure("x, s", 4.0, 2, {"a": 8.0, "b": None, "c": 0.0})
    assert page.cells(figure) == ["x, s", "≤ 2", "4 (missed)", "a 8; b -; c 0", "0.50"]


def test_a_job_ends_at_its_time_after_go_and_writes_down_when(tmp_path: Path) -> None:
    request = {"folder": str(tmp_path), "offsets": [0.3, 9.0]}
    with subprocess.Popen(["bash", "-c", protocol.script(request, 0)]) as job:
        began = time.time()
        (tmp_path / "go.tmp").write_text(f"{int(began * 1e6)}\n")
        (tmp_path / "go.tmp").rename(tmp_path / protocol.GO)
        assert job.wait(300) == 0
    ended = float((tmp_path / f"{protocol.ENDED}0").read_text())
    assert began + 0.3 <= ended <= time.time()


def test_a_loud_job_writes_lines_with_their_time(tmp_path: Path) -> None:
    request = {"folder": str(tmp_path), "offsets": [0.35], "loud": True}
    (tmp_path / protocol.GO).write_text(f"{int(time.time() * 1e6)}\n")
    done = subprocess.run(
        ["bash", "-c", protocol.script(request, 0)], capture_output=True, text=True, timeout=300, check=True
    )
    times = [float(line.split()[0].removeprefix(protocol.MARK)) for line in done.stdout.splitlines()]
    assert times and times == sorted(times)


def test_the_simulated_squeue_answers_in_the_format_that_the_client_asks_for(tmp_path: Path) -> None:
    program = tmp_path / "squeue"
    program.write_text((Path(page.__file__).with_name("simulated") / "squeue").read_text())
    program.chmod(stat.S_IRWXU)
    directories: dict[str, Any] = {job: str(tmp_path / job) for job in ("1", "2", "3")}
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "outcome.json").write_text("{}")
    (tmp_path / "jobs.json").write_text(json.dumps(directories))
    argv = [str(program), "-h", "-t", "all", "-O", status.SQUEUE_FORMAT, "-j", "1,2"]
    rows = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()
    found = dict(status.from_squeue(row) for row in rows)
    assert {job: info.state for job, info in found.items()} == {"1": "RUNNING", "2": "COMPLETED"}
    assert found["1"].belongs_to(directories["1"])
