"""Measure memory and speed of settings with verl's own SFT engine; verl/tuner.py starts this under torchrun.

The engine, the rows and the optimizer are those of the training; nothing is saved. A process that ran out of memory
ends, because its engine is in the middle of a step; torchrun then starts all processes again, and they go on with the
next settings, which the first process reads from what it has written.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from omegaconf import OmegaConf
from tensordict.tensorclass import NonTensorData
from verl.trainer import sft_trainer
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name, get_torch_device

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import log_line, read_json, write_json
from llm_bridge.remote.node.verl import tuning
from llm_bridge.remote.node.verl.tuning import Candidate, Measured

# Steps that are timed, after one that is not.
TIMED_STEPS = 3
# Rows of a process in a timed step, if its share of the batch is larger.
MOST_ROWS = 256
GIB = 2**30


class Tuner(sft_trainer.SFTTrainer):  # type: ignore[misc]  # verl has no types
    """verl's SFT trainer without checkpoints, whose steps are measured."""

    def __init__(self, config: Any) -> None:
        options = json.loads(os.environ[tuning.OPTIONS_VARIABLE])
        self.folder, self.answer = Path(options["folder"]), Path(options["answer"])
        self.state = self.folder / attempt_dir.TUNING_STATE
        self.deadline: float = options["deadline"]
        self.measured: list[Measured] = []
        self.over = self.complete = False
        self.tuned = tuning.training(
            lambda key: OmegaConf.select(config, key), torch.distributed.get_world_size()
        )
        self.memory_gib = self._memory()
        self.rank = torch.distributed.get_rank()
        if self.rank == 0:
            self._resume()
        self.candidate: Candidate | None = self._agreed(self._next(0) if self.rank == 0 else None)
        if self.candidate:
            OmegaConf.update(config, tuning.OFFLOAD, self.candidate.offload)
            with self._failures_noted():
                super().__init__(config)
                self._load_rows()

    def _build_ckpt_handler(self) -> None:
        self.ckpt_handler = SimpleNamespace(load_checkpoint=lambda: 0)

    def fit(self) -> None:
        """Measure candidates until there is none left, or the deadline has come; leave the answer on each node."""
        longest, candidate = 0.0, self.candidate
        while candidate:
            if candidate.offload != self.config.engine.offload_policy:
                self._start_again()  # weights are placed when the engine is built
            began = time.monotonic()
            with self._failures_noted():
                measured = self._measure(candidate)
            longest = max(longest, time.monotonic() - began)
            if self.rank == 0:
                self._add(measured)
            candidate = self._agreed(self._next(longest) if self.rank == 0 else None)
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            write_json(self.answer, self._agreed(self._content()))
        else:
            self._agreed(None)
        torch.distributed.barrier()

    def _agreed(self, value: Any) -> Any:
        """Return the first process's value in every process; the others' is ignored."""
        found = [value]
        torch.distributed.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]

    def _memory(self) -> float | None:
        """Return the least memory of a GPU, in GiB; None without one."""
        if get_device_name() != "cuda":
            return None
        _, total = torch.cuda.mem_get_info()
        least = torch.tensor(float(total), device="cuda")
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
        return float(least) / GIB

    # ---- what the first process writes

    def _content(self, running: Candidate | None = None) -> dict[str, Any]:
        return {
            "measured": [entry.as_json() for entry in self.measured],
            "memory_gib": self.memory_gib,
            "running": list(running) if running else None,
            "complete": self.complete,
        }

    def _failures(self) -> list[Path]:
        return list(self.folder.glob(f"{attempt_dir.TUNING_FAILURE}*"))

    def _resume(self) -> None:
        before = read_json(self.state) or {}
        self.measured = [Measured.from_json(entry) for entry in before.get("measured", ())]
        if running := before.get("running"):
            found = [(read_json(file) or {}).get("problem") for file in self._failures()]
            # The others lost their connection to a process that ran out of memory.
            found.sort(key=lambda problem: problem != tuning.OUT_OF_MEMORY)
            problem = next(filter(None, found), "ended without a reason")
            self._add(Measured(Candidate(*running), problem=problem))
            self.over = problem != tuning.OUT_OF_MEMORY

    def _add(self, measured: Measured) -> None:
        self.measured.append(measured)
        write_json(self.state, self._content())
        log_line(f"tuning: {tuning.describe(measured)}")

    def _next(self, longest: float) -> Candidate | None:
        """Return the next candidate, which has been noted; None at the end or where there is no time left for one."""
        while not self.over:
            found = tuning.following(self.tuned, self.measured, self.memory_gib)
            if isinstance(found, Measured):
                self._add(found)
                continue
            if found is None:
                self.complete = True
                break
            if self.measured and time.time() + longest > self.deadline:
                log_line(f"tuning: no time is left for {tuning.describe(Measured(found, problem='time'))}")
                return None
            for file in self._failures():
                file.unlink(missing_ok=True)
            write_json(self.state, self._content(running=found))
            return found
        return None

    def _start_again(self) -> NoReturn:
        """End the process, for torchrun to start it again: nothing has failed."""
        torch.distributed.barrier()
        if self.rank == 0:
            write_json(self.state, self._content())
        os._exit(1)

    # ---- measurements

    def _load_rows(self) -> None:
        """Read rows of the data for this process, and make one of the greatest length."""
        wanted = min(self.tuned.share, MOST_ROWS)
        self.rows = [self.train_dataset[index] for index in islice(iter(self.train_sampler), wanted)]
        if unknown := set(self.rows[0]) - {"input_ids", "attention_mask", "position_ids", "loss_mask"}:
            raise RuntimeError(f"the tuner measures rows of text only, and these have {sorted(unknown)}")
        length, vocabulary = self.tuned.max_length, self.model_config.hf_config.get_text_config().vocab_size
        ones = torch.ones(length, dtype=torch.long)
        full = {
            "input_ids": torch.randint(0, vocabulary, (length,)),
            "attention_mask": ones,
            "position_ids": torch.arange(length),
            "loss_mask": ones,
        }
        self.full = {name: full[name].to(value.dtype) for name, value in self.rows[0].items()}

    def _measure(self, candidate: Candidate) -> Measured:
        """Measure one candidate, in every process."""
        self._set_checkpointing(candidate.checkpointing)
        device, rows = get_torch_device(), self.tuned.rows(candidate)
        peak = reserved = None
        if self.memory_gib:
            device.empty_cache()
            device.reset_peak_memory_stats()
        # Two micro batches: gradients of the first are kept during the second.
        self._step(candidate, [self.full] * min(2 * rows, self.tuned.share))
        if self.memory_gib:
            peak, reserved = device.max_memory_allocated() / GIB, device.max_memory_reserved() / GIB
        count = len(self.rows) - len(self.rows) % rows
        data = self.rows[:count] or (self.rows * rows)[:rows]
        self._step(candidate, data)
        speeds: list[float] = []
        while len(speeds) < TIMED_STEPS and self._agreed(not speeds or time.time() < self.deadline):
            self._synchronize()
            began = time.monotonic()
            tokens = self._step(candidate, data)
            self._synchronize()
            speeds.append(tokens / (time.monotonic() - began))
        return Measured(candidate, round(statistics.median(speeds), 1), peak, reserved)

    @contextlib.contextmanager
    def _failures_noted(self) -> Iterator[None]:
        """Leave the reason of a failure, and end this process at once: the others wait for it in an operation."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"[:500]
            if isinstance(error, torch.OutOfMemoryError):
                problem = tuning.OUT_OF_MEMORY
            write_json(self.folder / f"{attempt_dir.TUNING_FAILURE}{self.rank}.json", {"problem": problem})
            sys.stderr.flush()
            os._exit(1)

    def _set_checkpointing(self, wanted: bool) -> None:
        if wanted:
            self.engine.module.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        else:
            self.engine.module.gradient_checkpointing_disable()

    def _step(self, candidate: Candidate, rows: list[dict[str, Any]]) -> int:
        """Train one batch, and return its tokens in all processes."""
        values: dict[str, Any] = {
            "use_remove_padding": self.config.model.use_remove_padding,
            "use_dynamic_bsz": candidate.dynamic,
            "max_token_len_per_gpu": candidate.size
            if candidate.dynamic
            else self.config.data.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": 1 if candidate.dynamic else candidate.size,
            "temperature": 1.0,
            "global_batch_size": len(rows) * self.engine.get_data_parallel_size(),
            "pad_mode": self.config.data.pad_mode,
            "pad_token_id": self.model_config.tokenizer.pad_token_id,
        }
        data = tu.get_tensordict(tensor_dict=self.collate_fn(rows), non_tensor_dict=values)
        lengths = self._get_batch_seqlens(data=data)
        tu.assign_non_tensor(data, update_lr_scheduler=False, global_token_num=NonTensorData(lengths))
        self.training_client.train_batch(data=data)
        return int(sum(lengths))

    def _synchronize(self) -> None:
        if self.memory_gib:
            torch.cuda.synchronize()
        torch.distributed.barrier()


if __name__ == "__main__":
    sft_trainer.SFTTrainer = Tuner  # run_sft looks the class up by this name
    sft_trainer.main()
