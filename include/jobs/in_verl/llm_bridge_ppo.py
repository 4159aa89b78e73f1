"""verl's hook for checkpoints (``trainer.checkpoint_callback_class``), which makes PPO save before its job ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llm_bridge_last_save import VARIABLE, LastSave, SaveFreq
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.utils.import_utils import load_class_from_fqn

# The class that the recipe names; ppo.py puts it here.
RECIPES_OWN = "llm_bridge_callback_class"


class SavesInTime(CheckpointCallback):
    """Made by the trainer before its first step, in the process that decides when to save.

    :param config: the trainer's own; its ``trainer.save_freq`` is replaced.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        own = config.trainer.get(RECIPES_OWN)
        self._own = load_class_from_fqn(own, "CheckpointCallback")(config=config) if own else None
        self._last = LastSave(Path(os.environ[VARIABLE]))
        config.trainer._set_flag("allow_objects", True)  # OmegaConf else takes plain numbers only
        config.trainer.save_freq = SaveFreq(config.trainer.save_freq, self._last.due)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """verl has saved a step."""
        self._last.saved()
        if self._own:
            self._own.on_save(*args, **kwargs)
