"""Make PPO save before its job ends, by verl's checkpoint hook (``trainer.checkpoint_callback_class``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.utils.import_utils import load_class_from_fqn

from llm_bridge.remote.node.verl.hooks.save_before_timeout import DEADLINE_VARIABLE, DeadlineSaver, SaveFreq

# Key below `trainer` that holds the recipe's own callback class; stages/ppo.py sets it.
RECIPE_CALLBACK = "llm_bridge_callback_class"


class SaveBeforeTimeout(CheckpointCallback):  # type: ignore[misc]  # verl has no types
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
        self._saver = DeadlineSaver(Path(os.environ[DEADLINE_VARIABLE]))
        config.trainer._set_flag("allow_objects", True)  # OmegaConf otherwise accepts plain numbers only
        config.trainer.save_freq = SaveFreq(config.trainer.save_freq, self._saver.due)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Record that verl has saved a step; arguments as verl passes them."""
        self._saver.saved()
        if self._recipe_callback:
            self._recipe_callback.on_save(*args, **kwargs)
