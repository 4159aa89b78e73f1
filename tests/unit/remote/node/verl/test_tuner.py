"""What starts the tuner, with other programs in its place: its own needs verl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.verl import hooks, tuner
from testing.paths import PLUGINS

CHATTY = """
print("[rank0]: torch.OutOfMemoryError: CUDA out of memory")
print("[default0]:[llm-bridge] tuning: micro_batch_size_per_gpu=8: 100 tokens/s")
"""
# It starts a process in a session of its own, as torchrun does, and neither ends, not even at SIGTERM.
STUCK = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
# The same, but the first process is gone.
ORPHANED = STUCK.replace("time.sleep(600)\n", "")
# In a process of its own: all of its children are ended.
STARTED = """
import sys
from llm_bridge.remote.node.verl import tuner
tuner.END_SECONDS = 1
with open(sys.argv[1], "ab") as log:
    tuner._logged([sys.executable, "-c", sys.argv[2]], {}, log, float(sys.argv[3]))
"""


def logged(log: Path, program: str, seconds: float) -> str:
    """Run a program as the tuner is run; return what it has printed into the job's output."""
    environ = {**os.environ, "PYTHONPATH": str(PLUGINS)}
    command = [sys.executable, "-c", STARTED, str(log), program, str(seconds)]
    return subprocess.run(
        command, env=environ, check=True, capture_output=True, text=True, timeout=300
    ).stdout


def test_the_module_that_it_starts_exists() -> None:
    assert f"{hooks.__name__}.tune" == tuner.MODULE
    assert (Path(tuner.__file__).parent / "hooks" / "tune.py").exists()


def test_what_did_not_fit_stays_out_of_the_jobs_output(tmp_path: Path) -> None:
    output = logged(tmp_path / "n1.log", CHATTY, 200)
    assert output == "[llm-bridge] tuning: micro_batch_size_per_gpu=8: 100 tokens/s\n"
    assert "CUDA out of memory" in (tmp_path / "n1.log").read_text()


@pytest.mark.parametrize("program", [STUCK, ORPHANED], ids=["stuck", "orphaned"])
def test_at_its_limit_it_is_ended_with_all_its_processes(tmp_path: Path, program: str) -> None:
    logged(tmp_path / "n1.log", program, 4)
    child = int((tmp_path / "n1.log").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize(("age", "used"), [(60, True), (-60, False)])
def test_what_an_earlier_job_measured_is_used_if_it_was_there_when_this_one_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, used: bool
) -> None:
    settings = tmp_path / attempt_dir.SETTINGS
    settings.write_text("{}")
    monkeypatch.setattr(sys, "argv", ["sft", str(settings)])
    file = tmp_path / "sft-0.json"
    assert tuner._remembered(file) is None
    file.write_text(json.dumps({"measured": [{}]}))
    submitted = settings.stat().st_mtime
    os.utime(file, (submitted - age, submitted - age))
    assert (tuner._remembered(file) is not None) is used
