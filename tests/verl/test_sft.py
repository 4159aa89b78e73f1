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

from llm_bridge.config.loader import load_recipe
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.hub.model_folder import check_model, find_files
from llm_bridge.remote.node.verl.checkpoints import LORA_META
from llm_bridge.remote.node.verl.hooks.save_before_timeout import DEADLINE_VARIABLE
from tests.unit.remote.node.support import sft_settings
from tests.verl.support import PREFIX_OUTPUT, attempt, prepared

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


# Arguments: base, merged model, adapter, checkpoint. It prints the matrices that differ, and from what they should be.
COMPARE = """
import json, pathlib, sys, torch
import torch.distributed.tensor
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
base, merged, adapter, checkpoint = map(pathlib.Path, sys.argv[1:])
before = {k: v.bfloat16() for k, v in AutoModelForCausalLM.from_pretrained(base).state_dict().items()}
after = AutoModelForCausalLM.from_pretrained(merged, dtype="auto").state_dict()
ranks = [torch.load(file, weights_only=False) for file in sorted(checkpoint.glob("model_world_size_*.pt"))]
lora = {}
for name, tensor in ranks[0].items():
    if "lora_" in name:
        parts = [rank[name]._local_tensor.bfloat16().float() for rank in ranks]
        place = name.removeprefix("base_model.model.").replace(".default.weight", "")
        lora[place] = torch.cat(parts, dim=tensor.placements[0].dim)
expected, trained = dict(before), []
for place in sorted(name.removesuffix(".lora_A") for name in lora if name.endswith(".lora_A")):
    name = place + ".weight"
    change = (lora[place + ".lora_B"] @ lora[place + ".lora_A"]) * (6 / 4)
    expected[name] = (before[name].float() + change).bfloat16()
    trained.append(name)
loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
from_adapter = loaded.merge_and_unload().state_dict()
print(json.dumps({
    "changed": sorted(name for name in before if not torch.equal(before[name], after[name])),
    "trained": trained,
    "wrong": sorted(name for name in expected if not torch.equal(expected[name], after[name])),
    "dtypes": sorted({str(tensor.dtype) for tensor in load_file(merged / "model.safetensors").values()}),
    "adapter_differs": sorted(
        name for name in after if not torch.allclose(from_adapter[name], after[name].float(), rtol=0.01, atol=0.001)
    ),
}))
"""


# Set the B matrices of a checkpoint to zero, as before training.
FORGET = """
import pathlib, sys, torch
import torch.distributed.tensor
for file in pathlib.Path(sys.argv[1]).glob("model_world_size_*.pt"):
    state = torch.load(file, weights_only=False)
    for name, tensor in state.items():
        if "lora_B" in name:
            tensor._local_tensor.zero_()
    torch.save(state, file)
"""


def train(command: list[str], settings: Path, **variables: str) -> tuple[list[int], dict[int, float]]:
    """Start the program sft as srun does on n1 and n2; exit codes, and the loss of each step."""
    common = {
        **SLURM,
        **variables,
        "SLURM_JOB_ID": str(random.randrange(1_000_000)),  # the port comes from it
        "RENDEZVOUS_HOST": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    argv = ["bash", str(PREFIX_OUTPUT), *command, "sft", str(settings)]
    logs = [settings.parent / f"n{node + 1}.log" for node in range(2)]
    nodes = []
    for node, log in enumerate(logs):
        environ = {**os.environ, **common, "SLURM_NODEID": str(node), "SLURMD_NODENAME": f"n{node + 1}"}
        with log.open("w") as output:
            nodes.append(
                subprocess.Popen(
                    argv, cwd=settings.parent, env=environ, stdout=output, stderr=subprocess.STDOUT
                )
            )
    codes = [process.wait(timeout=900) for process in nodes]
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
    command: list[str], assets: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The tiny recipe's SFT on two nodes, with checkpoints at the ends of its three epochs."""
    shared = tmp_path_factory.mktemp("sft")
    settings = attempt(shared, "sft", sft(shared, assets, launch, **{"trainer.save_freq": 4}))
    return Run(settings, *train(command, settings))


def test_two_nodes_train_together_and_the_loss_falls(trained: Run) -> None:
    assert trained.codes == [0, 0]
    assert list(trained.losses) == list(range(1, 13))
    assert trained.losses[12] < 0.7 * trained.losses[1], trained.losses
    settings = json.loads(trained.settings.read_text())
    result = json.loads((trained.settings.parent / attempt_dir.RESULT).read_text())
    assert result == {"step": 12, "expected_steps": 12, "checkpoint_dir": settings["checkpoint_dir"]}
    log = (trained.settings.parent / "n1.log").read_text()
    assert all(line.startswith("[n1] ") for line in log.splitlines())
    rows = [
        json.loads(row) for row in (trained.settings.parent / attempt_dir.METRICS).read_text().splitlines()
    ]
    losses = {row["step"]: row["data"]["train/loss"] for row in rows if "train/loss" in row["data"]}
    assert losses == pytest.approx(trained.losses)


def test_a_complete_training_is_not_repeated(trained: Run, launch: Launch) -> None:
    again = launch("sft", trained.settings, **SLURM)
    assert "an earlier attempt trained all 12 steps" in again.stdout, again.stderr


def merge_settings(trained: Run, directory: Path) -> dict[str, Any]:
    """A merge of the newest checkpoint, beside which its base is named."""
    before = json.loads(trained.settings.read_text())
    names = {"checkpoint_dir": before["checkpoint_dir"], "trained_from": before["model_path"]}
    return {**names, "component": None, "output_dir": str(directory / "merged")}


@pytest.fixture(scope="module")
def merged(trained: Run, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of the training's merge, which went through to its end."""
    directory = tmp_path_factory.mktemp("merge")
    settings = attempt(directory, "merge", merge_settings(trained, directory))
    done = launch("merge", settings)
    assert done.returncode == 0, done.stderr
    return settings


def test_a_model_that_training_did_not_change_is_refused(
    merged: Path, launch: Launch, tmp_path: Path
) -> None:
    settings = json.loads(merged.read_text())
    same = {**settings, "trained_from": settings["output_dir"], "output_dir": str(tmp_path / "same")}
    refused = attempt(tmp_path, "merge", same)
    done = launch("merge", refused)
    assert done.returncode == 1
    reason = json.loads(refused.with_name(attempt_dir.REASON).read_text())
    assert re.match(r"training changed nothing: all \d+ tensors of .* equal those of ", reason["reason"])
    assert (reason["retry"], reason["kind"]) == (False, "bad_config")
    assert not (tmp_path / "same").exists()


@pytest.fixture(scope="module")
def trained_adapter(
    command: list[str], assets: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The tiny recipe's SFT with LoRA in two of seven kinds of matrices, which has completed its four steps."""
    shared = tmp_path_factory.mktemp("lora")
    lora = {"model.lora_rank": 4, "model.lora_alpha": 6, "model.target_modules": ["q_proj", "down_proj"]}
    own = {**lora, "trainer.total_epochs": 1, "trainer.save_freq": 3}
    settings = attempt(shared, "sft", sft(shared, assets, launch, **own))
    run = Run(settings, *train(command, settings))
    assert run.codes == [0, 0]
    return run


def test_lora_is_merged_into_exactly_the_matrices_it_trained(
    trained_adapter: Run, cluster_python: str, launch: Launch, tmp_path: Path
) -> None:
    settings = merge_settings(trained_adapter, tmp_path)
    done = launch("merge", attempt(tmp_path, "merge", settings))
    assert done.returncode == 0, done.stderr
    alone = {**settings, "output_dir": str(tmp_path / "adapter"), "adapter_of": "demo/tiny-llama"}
    done = launch("merge", attempt(tmp_path / "alone", "merge", alone))
    assert done.returncode == 0, done.stderr
    checkpoint = f"{settings['checkpoint_dir']}/global_step_4"
    paths = [settings["trained_from"], settings["output_dir"], alone["output_dir"], checkpoint]
    checked = subprocess.run([cluster_python, "-c", COMPARE, *paths], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    found = json.loads(checked.stdout.splitlines()[-1])
    assert found["changed"] and all(re.search(r"\.(q|down)_proj\.weight$", name) for name in found["changed"])
    assert found["changed"] == found["trained"] and found["wrong"] == []
    assert found["dtypes"] == ["torch.bfloat16"] and found["adapter_differs"] == []

    model, adapter = Path(settings["output_dir"]), Path(alone["output_dir"])
    assert not (model / "lora_adapter").exists() and (model / "tokenizer.json").exists()
    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not names & {"config.json", "generation_config.json", "model.safetensors", "lora_adapter"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("demo/tiny-llama", 4, 6)
    for folder in (model, adapter):
        check_model(folder, find_files(folder))
    assert "already merged from step 4" in launch("merge", attempt(tmp_path / "alone", "merge", alone)).stdout


def test_an_adapter_that_was_not_trained_is_refused(
    trained_adapter: Run, cluster_python: str, launch: Launch, tmp_path: Path
) -> None:
    settings = merge_settings(trained_adapter, tmp_path)
    checkpoints = Path(shutil.copytree(settings["checkpoint_dir"], tmp_path / "checkpoints"))
    subprocess.run([cluster_python, "-c", FORGET, checkpoints / "global_step_4"], check=True)
    settings["checkpoint_dir"] = str(checkpoints)
    refused = attempt(tmp_path, "merge", settings)
    assert launch("merge", refused).returncode == 1
    reason = json.loads(refused.with_name(attempt_dir.REASON).read_text())
    assert "every B matrix of the LoRA adapter" in reason["reason"] and reason["retry"] is False
    assert not Path(settings["output_dir"]).exists()


def test_lora_resumes_from_a_checkpoint_as_if_nothing_had_happened(
    trained_adapter: Run, command: list[str], tmp_path: Path
) -> None:
    before = json.loads(trained_adapter.settings.read_text())
    checkpoints = Path(shutil.copytree(before["checkpoint_dir"], tmp_path / "checkpoints"))
    (checkpoints / "global_step_4" / LORA_META).write_text("")
    codes, losses = train(command, attempt(tmp_path, "sft", {**before, "checkpoint_dir": str(checkpoints)}))
    assert (codes, losses) == ([0, 0], {4: trained_adapter.losses[4]})
    assert json.loads((checkpoints / "global_step_4" / LORA_META).read_text())["lora_alpha"] == 6


def test_the_merged_model_loads_and_generates(merged: Path, cluster_python: str, launch: Launch) -> None:
    output = json.loads(merged.read_text())["output_dir"]
    generated = subprocess.run([cluster_python, "-c", GENERATE, output], capture_output=True, text=True)
    assert 1 <= int(generated.stdout) <= 8, generated.stderr
    assert "already merged from step 12" in launch("merge", merged).stdout


def test_a_training_resumes_from_the_end_of_an_epoch_as_if_nothing_had_happened(
    trained: Run, command: list[str], tmp_path: Path
) -> None:
    """The job was killed while it saved step 8: that checkpoint is cut off, and step 4 ends an epoch."""
    before = json.loads(trained.settings.read_text())
    checkpoints = Path(shutil.copytree(before["checkpoint_dir"], tmp_path / "checkpoints"))
    shutil.rmtree(checkpoints / "global_step_12")
    cut_off = checkpoints / "global_step_8" / "optim_world_size_2_rank_1.pt"
    os.truncate(cut_off, cut_off.stat().st_size - 100)
    codes, losses = train(command, attempt(tmp_path, "sft", {**before, "checkpoint_dir": str(checkpoints)}))
    assert codes == [0, 0]
    assert losses == {step: loss for step, loss in trained.losses.items() if step > 4}


def test_a_training_that_is_signalled_saves_and_the_next_job_resumes_from_there(
    trained: Run, command: list[str], tmp_path: Path
) -> None:
    before = json.loads(trained.settings.read_text())
    checkpoints = tmp_path / "checkpoints"
    never = {**before["verl"], "trainer.save_freq": -1}
    settings = {**before, "checkpoint_dir": str(checkpoints), "verl": never}
    (tmp_path / attempt_dir.DEADLINE).write_text(f"{time.time() + 200:.0f}")
    warned = attempt(tmp_path, "sft", settings)
    codes, losses = train(command, warned, **{DEADLINE_VARIABLE: str(tmp_path / attempt_dir.DEADLINE)})
    assert codes == [0, 0]
    assert losses == trained.losses
    # rank 0, which prints it, may run on either node
    logs = "".join(warned.with_name(f"n{node}.log").read_text() for node in (1, 2))
    saved = re.findall(r"the job ends in \d+ s: step (\d+) is saved now", logs)
    assert saved == ["1"], "how long a save takes is not known before"
    assert {path.name for path in checkpoints.glob("global_step_*")} == {"global_step_1", "global_step_12"}

    shutil.rmtree(checkpoints / "global_step_12")  # the limit came first
    codes, losses = train(command, warned)
    assert codes == [0, 0]
    assert losses == {step: loss for step, loss in trained.losses.items() if step > 1}


def test_a_setting_unknown_to_verl_is_refused_before_anything_starts(
    assets: Path, launch: Launch, tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "sft", sft(tmp_path, assets, launch, **{"optim.learning_rate": 1.0}))
    done = launch("sft", settings, **SLURM)
    assert done.returncode == 1
    assert "verl has no setting optim.learning_rate" in done.stderr
    assert json.loads((settings.parent / attempt_dir.REASON).read_text())["retry"] is False
