"""The check of vLLM's share of a GPU with verl's own configuration; nvidia-smi is a script here, as there is no GPU."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

from llm_bridge.config.loader import load_recipe
from tests.unit.remote.node.support import ppo_settings

CHECK = """
import json, sys
from llm_bridge.remote.node.stages import ppo
from llm_bridge.remote.node.verl import rollout_memory, trainer_config
settings = json.loads(sys.argv[1])
_, config = ppo.compose(settings)
models = {"actor": settings["actor_path"], "critic": settings["critic_path"]}
for gpus in (16, 1):
    print(rollout_memory.check(trainer_config.lookup(config), gpus, models))
"""


def test_the_recipe_is_refused_on_one_gpu_of_80_gb_and_fits_on_sixteen(
    cluster_python: str, archive: Path, tmp_path: Path
) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1_235_814_400], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 81559\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    model = str(tmp_path)
    settings = ppo_settings(
        nodes=2,
        gpus_per_node=8,
        device="cuda",
        actor_path=model,
        critic_path=model,
        verl=load_recipe("gsm8k_llama32_1b").ppo.verl,
    )
    environ = {**os.environ, "PYTHONPATH": str(archive), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [cluster_python, "-c", CHECK, json.dumps(settings)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    sixteen, one = done.stdout.splitlines()[-2:]
    assert sixteen == "None"
    assert "13.8 GiB of the actor and 13.8 GiB of the critic on each of 1 GPU(s). Lower it to 0.55" in one
