"""Run verl's SFT trainer so that it also saves before its job ends, and with the tuner's settings.

stages/sft.py starts this under torchrun.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from verl.trainer import sft_trainer

from llm_bridge.remote.node.verl.hooks.save_before_timeout import DEADLINE_VARIABLE, DeadlineSaver, SaveFreq
from llm_bridge.remote.node.verl.tuning import TUNED_VARIABLE


class Trainer(sft_trainer.SFTTrainer):  # type: ignore[misc]  # verl has no types
    """SFT trainer whose first process decides for all of them: with which settings of the tuner, and when to save.

    It asks :class:`DeadlineSaver` once a step. Processes whose micro batches differ would wait for each other forever.
    """

    def __init__(self, config: Any) -> None:
        tuned = [json.loads(os.environ.get(TUNED_VARIABLE, "{}"))]
        torch.distributed.broadcast_object_list(tuned, src=0, device=torch.device("cpu"))
        for key, value in tuned[0].items():
            OmegaConf.update(config, key, value)
        super().__init__(config)
        if os.environ.get(DEADLINE_VARIABLE):
            self._save_before_timeout()

    def _save_before_timeout(self) -> None:
        saver, save = DeadlineSaver(Path(os.environ[DEADLINE_VARIABLE])), self.ckpt_handler.save_checkpoint

        def due(step: int) -> bool:
            answer = torch.tensor(int(self.rank == 0 and saver.due(step)), device=self.device_name)
            torch.distributed.broadcast(answer, src=0)
            return bool(answer)

        def save_checkpoint(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            saver.saved()

        self.save_freq: int = SaveFreq(self.save_freq, due)
        self.ckpt_handler.save_checkpoint = save_checkpoint


if __name__ == "__main__":
    if os.environ.get(DEADLINE_VARIABLE) or os.environ.get(TUNED_VARIABLE):
        sft_trainer.SFTTrainer = Trainer  # run_sft looks the class up by this name
    sft_trainer.main()
