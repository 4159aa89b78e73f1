"""The class that verl's PPO calls after a save; nothing here trains."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.verl.hooks.save_before_timeout import DEADLINE_VARIABLE

IN_VERL = """
import json
from llm_bridge.remote.node.stages import ppo
from llm_bridge.remote.node.verl import trainer_config
from omegaconf import OmegaConf
overrides = ppo.hook_overrides("own.Notes")
config = trainer_config.load_config(ppo.CONFIG, ["trainer.save_freq=10", *overrides])
from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
callback = build_checkpoint_callback(config)
saved = []
for step in range(1, 13):
    if config.trainer.save_freq > 0 and step % config.trainer.save_freq == 0:
        callback.on_save(trainer=None, global_step=step, checkpoint_dir="/c", async_save=False)
        saved.append(step)
import own
kept = OmegaConf.to_container(config, resolve=True)["trainer"]["save_freq"]
print(json.dumps([saved, own.noted, json.dumps(kept)]))
"""


def test_verl_saves_when_the_allocation_ends_and_still_calls_the_recipes_own_class(
    cluster_python: str, archive: Path, tmp_path: Path
) -> None:
    """Load the class from the overrides as verl does; tests/e2e trains with it.

    The duration of a save is unknown before the first one, so that is made at once; step 10 is the recipe's.
    """
    own = "noted = []\nclass Notes:\n    def __init__(self, config): pass\n"
    own += "    def on_save(self, trainer, global_step, **rest): noted.append(global_step)\n"
    (tmp_path / "own.py").write_text(own)
    (tmp_path / attempt_dir.DEADLINE).write_text(f"{time.time() + 300:.0f}")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{archive}", "PYTHONWARNINGS": "ignore"}
    environ[DEADLINE_VARIABLE] = str(tmp_path / attempt_dir.DEADLINE)
    done = subprocess.run([cluster_python, "-c", IN_VERL], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[1, 10], [1, 10], "10"]
