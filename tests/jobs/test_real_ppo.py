"""Real PPO on a Ray cluster of one process each: going on from a checkpoint that stands at the end of an epoch."""

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

from llm_bridge.config.load import load_recipe
from tests.jobs.support import JOBS, attempt, ppo_settings, prepared

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
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # A session of its own, so that all that it starts ends with it.
        ray = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            look = f"import ray; ray.init('{address}'); print(ray.cluster_resources()['GPU'])"
            done = subprocess.run([cluster_python, "-c", look], capture_output=True, text=True, timeout=120)
            assert done.stdout.strip().endswith("1.0"), done.stderr + log.read_text()
            yield address
        finally:
            os.killpg(ray.pid, signal.SIGTERM)
            ray.wait(60)


def train(python: str, settings: Path, ray_address: str) -> tuple[int, list[int], str]:
    """Run ppo.py as a Ray job's entrypoint; its exit code, the steps that it trained, and its output."""
    environ = {**os.environ, "RAY_ADDRESS": ray_address, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, str(JOBS / "ppo.py"), str(settings)],
        cwd=settings.parent,
        env={**environ, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    text = done.stdout + done.stderr
    (settings.parent / "output.log").write_text(text)
    return done.returncode, sorted({int(step) for step in re.findall(r"step:(\d+) - ", text)}), text


@pytest.fixture(scope="module")
def trained(
    ray_address: str,
    cluster_python: str,
    assets: Path,
    launch: Launch,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Settings of a PPO of two epochs of one step each, which went through to its end."""
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
    code, steps, text = train(cluster_python, attempt(shared, "ppo", settings), ray_address)
    assert (code, steps) == (0, [1, 2]), text[-5000:]
    return settings


def test_from_the_end_of_an_epoch_ppo_goes_on_to_its_last_step(
    trained: dict[str, Any], ray_address: str, cluster_python: str, tmp_path: Path
) -> None:
    """The job was killed while it saved step 2: step 1, at an epoch's end, is what there is. SFT must be helped over
    that (``checkpoints.start_next_epoch_afresh``); verl 0.9.1's PPO needs no help, nor with trainer.use_v1=false."""
    checkpoints = Path(shutil.copytree(trained["checkpoint_dir"], tmp_path / "checkpoints"))
    shutil.rmtree(checkpoints / "global_step_2" / "critic")
    settings = attempt(tmp_path, "ppo", {**trained, "checkpoint_dir": str(checkpoints)})
    code, steps, text = train(cluster_python, settings, ray_address)
    assert (code, steps) == (0, [2]), text[-5000:]
    assert json.loads((settings.parent / "result.json").read_text())["step"] == 2
