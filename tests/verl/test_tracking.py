"""verl's own Tracking with llm-bridge's hook, in processes that import verl as those of a training do."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.loggers import LOGGERS
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.verl import trainer_config
from testing.wandb_server import WandbServer
from tests.unit.remote.node.support import sft_settings

BEGIN = "from verl.utils.tracking import Tracking, ValidationGenerationsLogger\n"
# Beside the server's own variables, so that a test does not wait for minutes.
SOON = {"WANDB_INIT_TIMEOUT": "5", "WANDB_FINISH_TIMEOUT": "5"}
Log = Callable[..., str]


@pytest.fixture
def log(cluster_python: str, archive: Path, tmp_path: Path) -> Log:
    """Run code that logs, in the attempt ``tmp_path``; return its output."""

    def run(code: str, *loggers: str, ends_with: int = 0, **variables: str) -> str:
        settings = sft_settings(logger=["console", *loggers], wandb_entity="acme", wandb_run_id="r-sft-0")
        environ = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **variables}
        environ |= trainer_config.training_environment(settings, environ, tmp_path)
        environ["PYTHONPATH"] = (
            f"{archive}:{tmp_path}"  # as in the processes of a job, which run from the archive
        )
        make = f"tracking = Tracking('p', 'e', {settings['logger'] + ['file']!r}, {{'trainer': {{}}}})\n"
        done = subprocess.run(
            [cluster_python, "-c", BEGIN + make + code],
            env=environ,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        assert done.returncode == ends_with, done.stdout
        return done.stdout

    return run


def metrics(attempt: Path) -> list[dict[str, Any]]:
    lines = (attempt / attempt_dir.METRICS).read_text().splitlines()
    return [json.loads(line) for line in lines]


VALUES = """
import json, math, numpy, os, torch
print(json.dumps(Tracking.supported_backend))
tracking.log({"loss": 1.5, "nan": math.nan, "infinite": numpy.float32("inf"), "a": numpy.int64(3), 7: True}, step=1)
tracking.log({"array": numpy.arange(2), "zero": numpy.array(3.0), "tensor": torch.tensor(2.5), "o": object}, step=2)
tracking.log({"huge": 2**70}, step=3)
tracking.log({"loss": 0.5}, step=4)
os._exit(0)  # killed
"""


def test_each_step_is_a_json_line_whatever_its_values_are_and_none_ends_the_training(
    log: Log, tmp_path: Path
) -> None:
    output = log(VALUES)
    first, second, last = metrics(tmp_path)
    assert abs(time.time() - first["time"]) < 120
    assert first["data"] == {"loss": 1.5, "nan": None, "infinite": None, "a": 3, "7": True}
    assert second["data"] == {"array": [0, 1], "zero": 3.0, "tensor": 2.5, "o": "<class 'object'>"}
    assert (first["step"], second["step"], last["step"]) == (1, 2, 4)
    assert output.count("WARNING: logger file: ") == 1 and "step:3 - huge:" in output
    supported = next(json.loads(line) for line in output.splitlines() if line.startswith('["'))
    assert sorted(supported) == sorted(LOGGERS), "what a recipe may name"


def test_a_job_that_slurm_runs_again_appends_and_drops_the_line_that_was_cut_off(
    log: Log, tmp_path: Path
) -> None:
    before = '{"step": 1, "time": 1.0, "data": {"loss": 2.0}}\n'
    (tmp_path / attempt_dir.METRICS).write_text(before + '{"step": 2, "ti')
    log("tracking.log({'loss': 1.0}, step=2)")
    assert [(row["step"], row["data"]["loss"]) for row in metrics(tmp_path)] == [(1, 2.0), (2, 1.0)]


BROKEN = """
tracking.log({"loss": 1.0}, step=1)
ValidationGenerationsLogger("p", "e").log(["trackio"], [("in", "out", 1.0)], 1)
import pathlib, os
file = pathlib.Path(os.environ["VERL_FILE_LOGGER_PATH"])
file.rmdir()  # the file system is back
tracking.log({"loss": 0.5}, step=2)
tracking.finish()
print("trained to the end")
"""
TRACKIO = """
from types import SimpleNamespace
class context_vars:
    current_run = SimpleNamespace(get=lambda: None)
def init(**_): pass
def log(*_, **__): raise OSError("the server is dead")
"""


def test_a_tracker_or_file_that_fails_never_ends_a_training(log: Log, tmp_path: Path) -> None:
    (tmp_path / attempt_dir.METRICS).mkdir()  # root can write any file
    (tmp_path / "trackio.py").write_text(TRACKIO)
    (tmp_path / "swanlab.py").write_text("def init(**_): raise OSError('no server')")
    output = log(BROKEN, "trackio", "swanlab")
    assert "trained to the end" in output
    for name, text in (
        ("file", "IsADirectoryError"),
        ("trackio", "server is dead"),
        ("swanlab", "no server"),
    ):
        assert output.count(f"WARNING: logger {name}: ") == 1 and text in output
    assert [row["step"] for row in metrics(tmp_path)] == [2]


DIES = """
import urllib.request
tracking.log({"loss": 1.0}, step=1)
urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/die")
tracking.log({"loss": 0.5}, step=2)
tracking.finish()
print("trained to the end")
"""


def test_the_address_of_the_wandb_run_is_known_as_soon_as_it_exists_and_a_server_that_dies_ends_nothing(
    log: Log, tmp_path: Path
) -> None:
    with WandbServer() as server:
        output = log("import os" + DIES, "wandb", **server.environ, **SOON)
        address = f"{server.url}/acme/p/runs/r-sft-0"
    assert f"[llm-bridge] W&B run: {address}" in output and "trained to the end" in output
    assert json.loads((tmp_path / attempt_dir.WANDB_RUN).read_text()) == {"id": "r-sft-0", "url": address}
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2]


def test_without_an_answer_of_its_server_wandb_logs_offline_into_the_attempt(
    log: Log, tmp_path: Path
) -> None:
    with WandbServer(503) as server:
        output = log(
            "tracking.log({'loss': 1.0}, step=1)\ntracking.finish()", "wandb", **server.environ, **SOON
        )
    assert "WARNING: Weights & Biases: CommError(" in output and "HTTP 503" in output
    assert f"upload it later with: wandb sync {tmp_path}/tracker_files/wandb/offline-run-*" in output
    assert len(list(tmp_path.glob("tracker_files/wandb/offline-run-*-r-sft-0/run-r-sft-0.wandb"))) == 1
    assert json.loads((tmp_path / attempt_dir.WANDB_RUN).read_text()) == {"id": "r-sft-0", "url": None}


def test_a_key_that_wandb_refuses_ends_the_training_before_its_first_step(log: Log, tmp_path: Path) -> None:
    with WandbServer(401) as server:
        output = log("tracking.log({'loss': 1.0}, step=1)", "wandb", ends_with=1, **server.environ, **SOON)
    assert "wandb.errors.errors.CommError: " in output and not (tmp_path / attempt_dir.METRICS).exists()
