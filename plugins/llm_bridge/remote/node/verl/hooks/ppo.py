"""Make PPO notice answers sooner, and save before its job ends.

verl's checkpoint hook (``trainer.checkpoint_callback_class``) loads this in the process of its trainer, before the
first step.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.import_utils import load_class_from_fqn

from llm_bridge.remote.node.verl.hooks.save_before_timeout import DEADLINE_VARIABLE, DeadlineSaver, SaveFreq

# Key below `trainer` that holds the recipe's own callback class; stages/ppo.py sets it.
RECIPE_CALLBACK = "llm_bridge_callback_class"


# verl 0.9.1 looks every 2 s if all answers of a step are there (not a setting), which costs a step 1 s on average.
POLL_SECONDS = 0.1
# Part of the time that looking may take: it asks another process for the state of each answer.
POLL_SHARE = 0.2

_verl_look = ReplayBuffer._sync_metadata_from_transfer_queue


def _look(self: Any, *arguments: Any) -> Any:
    """Look for answers, and set how long the trainer waits before it looks again; asynchronous ones keep verl's."""
    began = time.monotonic()
    result = _verl_look(self, *arguments)
    if self.trainer_mode == "sync":
        self.poll_interval = min(2.0, max(POLL_SECONDS, (time.monotonic() - began) / POLL_SHARE))
    return result


ReplayBuffer._sync_metadata_from_transfer_queue = _look


class Callback(CheckpointCallback):  # type: ignore[misc]  # verl has no types
    """Callback that saves the last step before the job ends, and calls the recipe's own callback as well.

    The trainer constructs it before the first step, in the process that decides when to save.

    Args:
        config: The trainer's own configuration; its ``trainer.save_freq`` is replaced.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        name = config.trainer.get(RECIPE_CALLBACK)
        self._recipe_callback = (
            load_class_from_fqn(name, "CheckpointCallback")(config=config) if name else None
        )
        self._saver = None
        if notice := os.environ.get(DEADLINE_VARIABLE):
            self._saver = DeadlineSaver(Path(notice))
            self._replace_save_freq(config, self._saver)

    @staticmethod
    def _replace_save_freq(config: Any, saver: DeadlineSaver) -> None:
        config.trainer._set_flag("allow_objects", True)  # OmegaConf otherwise accepts plain numbers only
        config.trainer.save_freq = SaveFreq(config.trainer.save_freq, saver.due)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Record that verl has saved a step; arguments as verl passes them."""
        if self._saver:
            self._saver.saved()
        if self._recipe_callback:
            self._recipe_callback.on_save(*args, **kwargs)
