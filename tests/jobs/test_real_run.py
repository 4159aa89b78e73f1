"""Real training: SFT on two nodes (two processes on this machine), merge, and the model that comes out."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llm_bridge.config.load import load_recipe
from tests.jobs.support import JOBS, attempt, prepared, sft_settings

Launch = Callable[..., subprocess.CompletedProcess[str]]

SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1"}

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


def train(python: str, settings: Path, **variables: str) -> tuple[list[int], dict[int, float]]:
    """Start sft.py as srun does on n1 and n2; exit codes, and the loss of each step."""
    common = {
        **SLURM,
        **variables,
        "SLURM_JOB_ID": str(random.randrange(1_000_000)),  # the port comes from it
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


def sft(shared: Path, assets: Path, launch: Launch, **changes: Any) -> dict[str, Any]:
    """The settings of the tiny recipe's SFT, with its data prepared."""
    ready = prepared(shared, assets, launch)
    return sft_settings(
        device="cpu",
        checkpoint_dir=str(shared / "checkpoints"),
        experiment_name="it's $(x) ${y}, {z}",
        verl={**load_recipe("tiny_cpu").sft.verl, **changes},
        **{key: ready[key] for key in ("train_files", "val_files", "model_path")},
    )


class Run(NamedTuple):
    """A training that went through to its end."""

    settings: Path
    codes: list[int]
    losses: dict[int, float]


@pytest.fixture(scope="module")
def trained(
    cluster_python: str, assets: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The tiny recipe's SFT on two nodes, with checkpoints at the ends of its three epochs."""
    shared = tmp_path_factory.mktemp("sft")
    settings = attempt(shared, "sft", sft(shared, assets, launch, **{"trainer.save_freq": 4}))
    return Run(settings, *train(cluster_python, settings))


def test_two_nodes_train_together_and_the_loss_falls(trained: Run) -> None:
    assert trained.codes == [0, 0]
    assert list(trained.losses) == list(range(1, 13))
    assert trained.losses[12] < 0.7 * trained.losses[1], trained.losses
    settings = json.loads(trained.settings.read_text())
    result = json.loads((trained.settings.parent / "result.json").read_text())
    assert result == {"step": 12, "expected_steps": 12, "checkpoint_dir": settings["checkpoint_dir"]}
    log = (trained.settings.parent / "n1.log").read_text()
    assert all(line.startswith("[n1] ") for line in log.splitlines())


def test_a_finished_training_is_not_done_again(trained: Run, launch: Launch) -> None:
    again = launch("sft.py", trained.settings, **SLURM)
    assert "an earlier attempt trained all 12 steps" in again.stdout, again.stderr


def test_the_merged_model_loads_and_generates(
    trained: Run, cluster_python: str, launch: Launch, tmp_path: Path
) -> None:
    checkpoints = json.loads(trained.settings.read_text())["checkpoint_dir"]
    output = tmp_path / "merged"
    merging = attempt(
        tmp_path, "merge", {"checkpoint_dir": checkpoints, "component": None, "output_dir": str(output)}
    )
    merged = launch("merge.py", merging)
    assert merged.returncode == 0, merged.stderr
    generated = subprocess.run([cluster_python, "-c", GENERATE, str(output)], capture_output=True, text=True)
    assert 1 <= int(generated.stdout) <= 8, generated.stderr
    assert "already merged from step 12" in launch("merge.py", merging).stdout


def test_from_the_end_of_an_epoch_training_goes_on_as_if_nothing_had_happened(
    trained: Run, cluster_python: str, tmp_path: Path
) -> None:
    """The job was killed while it saved step 8: that checkpoint is cut off, and step 4 ends an epoch."""
    before = json.loads(trained.settings.read_text())
    checkpoints = Path(shutil.copytree(before["checkpoint_dir"], tmp_path / "checkpoints"))
    shutil.rmtree(checkpoints / "global_step_12")
    cut_off = checkpoints / "global_step_8" / "optim_world_size_2_rank_1.pt"
    os.truncate(cut_off, cut_off.stat().st_size - 100)
    codes, losses = train(
        cluster_python, attempt(tmp_path, "sft", {**before, "checkpoint_dir": str(checkpoints)})
    )
    assert codes == [0, 0]
    assert losses == {step: loss for step, loss in trained.losses.items() if step > 4}


def test_a_training_that_is_warned_of_its_end_saves_and_the_next_job_goes_on_from_there(
    trained: Run, cluster_python: str, tmp_path: Path
) -> None:
    before = json.loads(trained.settings.read_text())
    checkpoints = tmp_path / "checkpoints"
    never = {**before["verl"], "trainer.save_freq": -1}
    settings = {**before, "checkpoint_dir": str(checkpoints), "verl": never}
    (tmp_path / "ends_soon").write_text(f"{time.time() + 200:.0f}")
    warned = attempt(tmp_path, "sft", settings)
    codes, losses = train(cluster_python, warned, LLM_BRIDGE_ENDS_SOON=str(tmp_path / "ends_soon"))
    assert codes == [0, 0]
    assert losses == trained.losses
    said = re.findall(
        r"the job ends in \d+ s: step (\d+) is saved now", warned.with_name("n1.log").read_text()
    )
    assert said == ["1"], "how long a save takes is not known before"
    assert {path.name for path in checkpoints.glob("global_step_*")} == {"global_step_1", "global_step_12"}

    shutil.rmtree(checkpoints / "global_step_12")  # the limit came first
    codes, losses = train(cluster_python, warned)
    assert codes == [0, 0]
    assert losses == {step: loss for step, loss in trained.losses.items() if step > 1}


def test_a_setting_that_verl_does_not_know_is_told_before_anything_starts(
    assets: Path, launch: Launch, tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "sft", sft(tmp_path, assets, launch, **{"optim.learning_rate": 1.0}))
    done = launch("sft.py", settings, **SLURM)
    assert done.returncode == 1
    assert "verl refuses a setting" in done.stderr and "learning_rate" in done.stderr
    assert json.loads((settings.parent / "reason.json").read_text())["retry"] is False
