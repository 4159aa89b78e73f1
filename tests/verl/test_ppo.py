"""Real PPO on a Ray cluster of one node: resume from a checkpoint at the end of an epoch."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.loader import load_recipe
from llm_bridge.config.recipe import Ppo
from llm_bridge.remote import attempt_dir
from tests.unit.remote.node.support import ppo_settings
from tests.verl.support import attempt, prepared

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def ray_address(cluster_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster of one node with one pretended GPU, and a token of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    command = [str(Path(cluster_python).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=8", "--num-gpus=1", "--include-dashboard=true"]
    command += ["--dashboard-port=0", "--object-store-memory=300000000", "--disable-usage-stats"]
    with pytest.MonkeyPatch.context() as patch, log.open("w") as output:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_worker_niceness", "0")  # niced workers starve beside other tests
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # A session of its own, so that all that it starts ends with it.
        ray = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            gpus = f"import ray; ray.init('{address}'); print(ray.cluster_resources()['GPU'])"
            done = subprocess.run([cluster_python, "-c", gpus], capture_output=True, text=True, timeout=600)
            assert done.stdout.strip().endswith("1.0"), done.stderr + log.read_text()
            yield address
        finally:
            os.killpg(ray.pid, signal.SIGTERM)
            ray.wait(60)


def train(command: list[str], settings: Path, ray_address: str) -> tuple[int, list[int], str]:
    """Run the program ppo as a Ray job's entrypoint; its exit code, the steps that it trained, and its output."""
    environ = {**os.environ, "RAY_ADDRESS": ray_address, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "ppo", str(settings)],
        cwd=settings.parent,
        env={**environ, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    text = done.stdout + done.stderr
    (settings.parent / attempt_dir.OUTPUT).write_text(text)
    return done.returncode, sorted({int(step) for step in re.findall(r"step:(\d+) - ", text)}), text


@pytest.fixture(scope="module")
def trained(
    ray_address: str,
    command: list[str],
    assets: Path,
    launch: Launch,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Settings of a PPO of two epochs of one step each, which has completed."""
    shared = tmp_path_factory.mktemp("ppo")
    ready = prepared(shared, assets, launch)
    own = {
        "data.train_max_samples": 16,
        "trainer.total_epochs": 2,
        "trainer.total_training_steps": None,
        "trainer.save_freq": 1,
    }
    settings: dict[str, Any] = ppo_settings(
        device="cpu",
        nodes=1,
        gpus_per_node=1,
        checkpoint_dir=str(shared / "checkpoints"),
        actor_path=ready["model_path"],
        critic_path=ready["model_path"],
        verl={**load_recipe("tiny_cpu").ppo.verl, **own},
        **{key: ready[key] for key in ("train_files", "val_files")},
    )
    code, steps, text = train(command, attempt(shared, "ppo", settings), ray_address)
    assert (code, steps) == (0, [1, 2]), text[-5000:]
    return settings


def test_ppo_resumes_from_the_end_of_an_epoch_and_reaches_its_last_step(
    trained: dict[str, Any], ray_address: str, command: list[str], tmp_path: Path
) -> None:
    """The job was killed while it saved step 2, so that step 1, the end of an epoch, is its newest checkpoint.

    SFT needs ``checkpoints.start_next_epoch_afresh`` there; verl 0.9.1's PPO does not, nor with trainer.use_v1=false.
    """
    checkpoints = Path(shutil.copytree(trained["checkpoint_dir"], tmp_path / "checkpoints"))
    shutil.rmtree(checkpoints / "global_step_2" / "critic")
    settings = attempt(tmp_path, "ppo", {**trained, "checkpoint_dir": str(checkpoints)})
    code, steps, text = train(command, settings, ray_address)
    assert (code, steps) == (0, [2]), text[-5000:]
    assert json.loads((settings.parent / attempt_dir.RESULT).read_text())["step"] == 2


def test_an_actor_trained_with_lora_is_merged_into_a_model(
    trained: dict[str, Any], ray_address: str, command: list[str], launch: Launch, tmp_path: Path
) -> None:
    lora = {
        "actor_rollout_ref.model.lora_rank": 4,
        "actor_rollout_ref.model.lora.merge": True,  # the rollout on CPUs takes whole models only
        "actor_rollout_ref.actor.optim.lr": 1.0e-3,
        "trainer.total_epochs": 1,
    }
    own = {"checkpoint_dir": str(tmp_path / "checkpoints"), "verl": {**trained["verl"], **lora}}
    code, steps, text = train(command, attempt(tmp_path, "ppo", {**trained, **own}), ray_address)
    assert (code, steps) == (0, [1]), text[-5000:]
    settings = {
        "checkpoint_dir": own["checkpoint_dir"],
        "component": "actor",
        "trained_from": trained["actor_path"],
        "output_dir": str(tmp_path / "merged"),
    }
    done = launch("merge", attempt(tmp_path, "merge", settings))
    assert done.returncode == 0, done.stderr
    assert "merged the LoRA adapter" in done.stdout
    assert not (tmp_path / "merged" / "lora_adapter").exists()


# grpo has a reference model and verl's default trainer, remax verl's older one.
@pytest.mark.parametrize("algorithm", ["grpo", "remax"])
def test_an_algorithm_without_a_critic_trains_and_saves_the_actor_only(
    trained: dict[str, Any], ray_address: str, command: list[str], tmp_path: Path, algorithm: str
) -> None:
    own = {key: value for key, value in trained["verl"].items() if "critic." not in key}
    own |= {
        "actor_rollout_ref.rollout.n": 2,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 4,
    }
    verl = Ppo.model_validate({"algorithm": algorithm, "verl": own}).verl
    given = {**trained, "checkpoint_dir": str(tmp_path / "checkpoints"), "verl": verl}
    del given["critic_path"]
    settings = attempt(tmp_path, "ppo", given)
    code, steps, text = train(command, settings, ray_address)
    assert (code, steps) == (0, [1, 2]), text[-5000:]
    assert "critic/score/mean:" in text, "the reward, which the task's log shows"
    rows = [json.loads(row) for row in settings.with_name(attempt_dir.METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows if "critic/score/mean" in row["data"]] == steps
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "global_step_2").iterdir()) == [
        "actor",
        "data.pt",
    ]
    again = train(command, attempt(tmp_path / "again", "ppo", given), ray_address)
    assert again[:2] == (0, []) and "nothing to do" in again[2]
