"""The tuner on a CPU, with a tiny Llama and verl's own engine. There is no GPU: a stand-in raises its error."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_bridge.config.loader import load_recipe
from llm_bridge.remote import attempt_dir
from tests.unit.remote.node.support import sft_settings
from tests.verl.support import attempt, prepared

SLURM = {"SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "1"}

# Instead of a GPU's memory: without gradient checkpointing, no more than 8 rows fit.
LIMITED = """
import torch
from verl.trainer import sft_trainer
from llm_bridge.remote.node.verl.hooks import tune

class Tuner(tune.Tuner):
    def _step(self, candidate, rows):
        if candidate.size > 8 and not candidate.checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super()._step(candidate, rows)

if __name__ == "__main__":
    sft_trainer.SFTTrainer = Tuner
    sft_trainer.main()
"""
# The program sft, with that module.
PROGRAM = """
import sys
archive, settings = sys.argv[1:]
sys.path.insert(0, archive)
sys.argv = ["sft", settings]
from llm_bridge.remote.node.stages import sft
from llm_bridge.remote.node.verl import tuner
tuner.MODULE, tuner.SECONDS = "limited", 900
sft.main()
"""


def test_sft_measures_settings_in_its_job_and_trains_with_the_fastest_that_fit(
    cluster_python: str,
    archive: Path,
    assets: Path,
    launch: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    ready = prepared(tmp_path, assets, launch)
    changes = {"trainer.total_training_steps": 2, "trainer.total_epochs": 1}
    settings = sft_settings(
        device="cpu",
        checkpoint_dir=str(tmp_path / "checkpoints"),
        tune="apply",
        tuning_dir=str(tmp_path / "tuning"),
        verl={**load_recipe("tiny_cpu").sft.verl, **changes},
        **{key: ready[key] for key in ("train_files", "val_files", "model_path")},
    )
    file = attempt(tmp_path, "sft", settings)
    (tmp_path / "limited.py").write_text(LIMITED)
    environ = {
        **os.environ,
        **SLURM,
        "SLURM_JOB_ID": str(random.randrange(1_000_000)),
        "SLURMD_NODENAME": "n1",
        "RENDEZVOUS_HOST": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(tmp_path),
    }
    done = subprocess.run(
        [cluster_python, "-c", PROGRAM, str(archive), str(file)],
        cwd=file.parent,
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]

    result: dict[str, Any] = json.loads(file.with_name(attempt_dir.RESULT).read_text())
    assert result["step"] == 2
    tuning = result["tuning"]
    measured = [line.rpartition(": ")[::2] for line in tuning["measured"]]
    assert [(name.split(":")[0].split("=")[1].split()[0], "true" in name) for name, _ in measured] == [
        ("8", True),
        ("16", True),
        ("8", False),
        ("16", False),
    ]
    assert measured[3][1] == "out of memory" and all("tokens/s" in found for _, found in measured[:3])
    # The training has the settings, and the next attempt would, too; which of them was fastest depends on the machine.
    kept = (
        json.loads((tmp_path / "checkpoints" / attempt_dir.TUNED).read_text()) if tuning["settings"] else {}
    )
    assert tuning["applied"] == bool(tuning["settings"]) == bool(kept)
    for key, value in tuning["settings"].items():
        assert f"'{key.rpartition('.')[2]}': {value}" in done.stdout
    assert len(list((tmp_path / "tuning").glob("sft-*.json"))) == 1

    # What did not fit is in a file of its own, and is no cause of failure in the job's output.
    assert "CUDA out of memory" not in done.stdout + done.stderr
    assert "CUDA out of memory" in (file.parent / attempt_dir.TUNING / "n1.log").read_text()
    assert f"tuning: {tuning['text']}" in done.stdout

    again = launch("tune", attempt(tmp_path / "again", "sft", settings), **{**SLURM, "SLURM_JOB_ID": "1"})
    assert "tuning: measured by an earlier job" in again.stdout and tuning["text"] in again.stdout, (
        again.stderr
    )
