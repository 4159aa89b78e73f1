"""How soon PPO's trainer notices that all answers of a step are there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

IN_VERL = """
import json, sys, time
from verl.trainer.ppo.v1 import replay_buffer
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

def waits(kind, mode, looking):
    buffer = kind(trainer_mode=mode, trainer_config={}, max_off_policy_threshold=None,
                  max_off_policy_strategy="drop", sampler_kwargs={})
    slept = []
    replay_buffer.tq.kv_list = lambda *arguments, **named: time.sleep(looking) or {}
    buffer._sync_metadata_from_transfer_queue()
    replay_buffer.time.sleep, sleep = slept.append, time.sleep
    try:
        buffer._wait_for_next_poll("train", time.time())
    finally:
        replay_buffer.time.sleep = sleep
    return round(slept[0], 3)

before = waits(ReplayBuffer, "sync", 0.0)
from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
from omegaconf import OmegaConf
build_checkpoint_callback(OmegaConf.create({"trainer": {"checkpoint_callback_class": sys.argv[1], "save_freq": 10}}))
print(json.dumps([
    before, waits(ReplayBuffer, "sync", 0.0), waits(ReplayBuffer, "sync", 0.2),
    waits(ReplayBufferAsync, "separate_async", 0.0),
]))
"""


def test_the_trainer_looks_often_for_answers_unless_looking_takes_long(
    cluster_python: str, archive: Path
) -> None:
    """The asynchronous trainers keep verl's interval, with which they also tell if they had to wait."""
    environ = {**os.environ, "PYTHONPATH": str(archive), "PYTHONWARNINGS": "ignore"}
    environ.pop("LLM_BRIDGE_ENDS_SOON", None)
    command = [cluster_python, "-c", IN_VERL, "llm_bridge.remote.node.verl.hooks.ppo.Callback"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verls, quick, slow, asynchronous = json.loads(done.stdout.splitlines()[-1])
    assert verls == asynchronous == 2.0
    assert quick < slow <= 2.0 and slow >= 1.0
