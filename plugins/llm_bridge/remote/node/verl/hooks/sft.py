"""Run verl's SFT trainer so that it also saves before its job ends; stages/sft.py starts this under torchrun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from verl.trainer import sft_trainer

from llm_bridge.remote.node.verl.hooks.save_before_timeout import DEADLINE_VARIABLE, DeadlineSaver, SaveFreq


class Trainer(sft_trainer.SFTTrainer):  # type: ignore[misc]  # verl has no types
    """SFT trainer whose first process asks :class:`DeadlineSaver` once a step and broadcasts the answer."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
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
    if os.environ.get(DEADLINE_VARIABLE):
        sft_trainer.SFTTrainer = Trainer  # run_sft looks the class up by this name
    sft_trainer.main()
