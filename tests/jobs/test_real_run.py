"""Real training: SFT on two nodes (two processes on this machine), merge, and the model that comes out."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.load import load_recipe
from tests.jobs.support import JOBS, sft_settings

Launch = Callable[..., subprocess.CompletedProcess[str]]
Attempt = Callable[..., Path]

GENERATE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Ken had 2 books"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
print(output.shape[1] - prompt["input_ids"].shape[1])
"""


def train(python: str, settings: Path) -> tuple[list[int], dict[int, float]]:
    """Start sft.py as srun does on n1 and n2; exit codes, and the loss of each step."""
    common = {
        "SLURM_JOB_ID": str(random.randrange(1_000_000)),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "RENDEZVOUS_HOST": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = ["bash", str(JOBS / "on_node.sh"), python, str(JOBS / "sft.py"), str(settings)]
    logs = [settings.parent / f"n{node + 1}.log" for node in range(2)]
    nodes = []
    for node, log in enumerate(logs):
        environ = {**os.environ, **common, "SLURM_NODEID": str(node), "SLURMD_NODENAME": f"n{node + 1}"}
        with log.open("w") as output:
            nodes.append(
                subprocess.Popen(
                    command, cwd=settings.parent, env=environ, stdout=output, stderr=subprocess.STDOUT
                )
            )
    codes = [process.wait(timeout=300) for process in nodes]
    text = "".join(log.read_text() for log in logs)
    losses = {int(s): float(loss) for s, loss in re.findall(r"step:(\d+) - .*?train/loss:([\d.]+)", text)}
    if codes != [0, 0]:
        print(text[-5000:])
    return codes, losses


def sft(shared: Path, assets: Path, launch: Launch, attempt: Attempt, **changes: Any) -> dict[str, Any]:
    """The settings of the tiny recipe's SFT, with its data prepared."""
    data = {
        "data_source": str(assets / "gsm8k-tiny"),
        "data_config": "main",
        "data_dir": str(shared / "data"),
    }
    model = {"base_model": str(assets / "tiny-llama"), "model_dir": str(shared / "model")}
    prepared = attempt("prepare", {**data, **model})
    assert launch("prepare.py", prepared).returncode == 0
    ready = json.loads((prepared.parent / "result.json").read_text())
    return sft_settings(
        device="cpu",
        checkpoint_dir=str(shared / "checkpoints"),
        experiment_name="it's $(x) ${y}, {z}",
        verl={**load_recipe("tiny_cpu").sft.verl, **changes},
        **{key: ready[key] for key in ("train_files", "val_files", "model_path")},
    )


def test_two_nodes_train_together_and_the_merged_model_generates(
    cluster_python: str, assets: Path, launch: Launch, attempt: Attempt, tmp_path: Path
) -> None:
    settings = attempt("sft", sft(tmp_path, assets, launch, attempt))
    codes, losses = train(cluster_python, settings)
    assert codes == [0, 0]
    assert list(losses) == list(range(1, 13))
    assert losses[12] < 0.7 * losses[1], losses
    result = json.loads((settings.parent / "result.json").read_text())
    assert result == {"step": 12, "expected_steps": 12, "checkpoint_dir": str(tmp_path / "checkpoints")}
    first = (settings.parent / "n1.log").read_text().splitlines()
    assert all(line.startswith("[n1] ") for line in first)

    again = launch("sft.py", settings, SLURM_JOB_ID="1", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="1")
    assert "an earlier attempt trained all 12 steps" in again.stdout, again.stderr

    output = tmp_path / "merged"
    merging = {"checkpoint_dir": result["checkpoint_dir"], "component": None, "output_dir": str(output)}
    merged = launch("merge.py", attempt("merge", merging))
    assert merged.returncode == 0, merged.stderr
    generated = subprocess.run([cluster_python, "-c", GENERATE, str(output)], capture_output=True, text=True)
    assert 1 <= int(generated.stdout) <= 8, generated.stderr
    assert "already merged from step 12" in launch("merge.py", attempt("merge", merging)).stdout


@pytest.mark.slow
def test_training_goes_on_from_the_end_of_an_epoch_as_if_nothing_had_happened(
    cluster_python: str, assets: Path, launch: Launch, attempt: Attempt, tmp_path: Path
) -> None:
    settings = attempt("sft", sft(tmp_path, assets, launch, attempt, **{"trainer.save_freq": 4}))
    _, unbroken = train(cluster_python, settings)
    shutil.rmtree(tmp_path / "checkpoints" / "global_step_12")
    cut_off = tmp_path / "checkpoints" / "global_step_8" / "optim_world_size_2_rank_1.pt"
    os.truncate(cut_off, cut_off.stat().st_size - 100)
    codes, resumed = train(cluster_python, settings)
    assert codes == [0, 0]
    assert resumed == {step: loss for step, loss in unbroken.items() if step > 4}


def test_a_setting_that_verl_does_not_know_is_told_before_anything_starts(
    assets: Path, launch: Launch, attempt: Attempt, tmp_path: Path
) -> None:
    settings = attempt("sft", sft(tmp_path, assets, launch, attempt, **{"optim.learning_rate": 1.0}))
    done = launch("sft.py", settings, SLURM_JOB_ID="1", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="1")
    assert done.returncode == 1
    assert "verl refuses a setting" in done.stderr and "learning_rate" in done.stderr
    assert json.loads((settings.parent / "reason.json").read_text())["retry"] is False
