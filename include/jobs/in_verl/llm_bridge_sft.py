"""verl's SFT trainer, which also saves before its job ends; started by sft.py under torchrun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from llm_bridge_last_save import VARIABLE, LastSave, SaveFreq
from verl.trainer import sft_trainer


class Trainer(sft_trainer.SFTTrainer):
    """Asks :class:`LastSave` once a step in the first process; all others do as that one says."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        last, save = LastSave(Path(os.environ[VARIABLE])), self.ckpt_handler.save_checkpoint

        def due(step: int) -> bool:
            answer = torch.tensor(int(self.rank == 0 and last.due(step)), device=self.device_name)
            torch.distributed.broadcast(answer, src=0)
            return bool(answer)

        def save_checkpoint(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            last.saved()

        self.save_freq = SaveFreq(self.save_freq, due)
        self.ckpt_handler.save_checkpoint = save_checkpoint


if __name__ == "__main__":
    if os.environ.get(VARIABLE):
        sft_trainer.SFTTrainer = Trainer  # run_sft looks it up by this name
    sft_trainer.main()
