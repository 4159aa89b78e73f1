"""Diagnosis of the output of the real W&B client if its server refuses the key."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from llm_bridge.diagnosis.evidence import Evidence, in_lines
from llm_bridge.diagnosis.rules import diagnose
from testing.wandb_server import REFUSALS, WandbServer

INIT = "import wandb; wandb.init(project='p', entity='acme')"


# As in a recipe's training, and a run of the user's own script.
@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize(
    "run", [{"WANDB_RUN_ID": "r-sft-0", "WANDB_RESUME": "allow"}, {}], ids=["ours", "own"]
)
def test_a_key_that_is_refused_is_named_as_the_cause(
    status: int, run: dict[str, str], cluster_python: str, tmp_path: Path
) -> None:
    with WandbServer(status) as server:
        done = subprocess.run(
            [cluster_python, "-c", INIT],
            env={**os.environ, **server.environ, "HOME": str(tmp_path), **run},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode
    lines = done.stderr.splitlines()
    found = diagnose(Evidence(found=in_lines(lines), last_line=lines[-1]))
    assert found.kind == "token_refused" and "wandb_entity" in found.advice, done.stderr
