"""Find complete FSDP checkpoints of verl on disk, and choose the one from which training resumes.

Layout (``verl/utils/checkpoint``, 0.9.1): ``DIR/global_step_N/`` for SFT, ``DIR/global_step_N/actor/`` and
``critic/`` for PPO, each with ``KIND_world_size_W_rank_R.pt`` for every process and ``fsdp_config.json``;
``DIR/latest_checkpointed_iteration.txt`` names the newest N. verl marks no checkpoint as complete.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llm_bridge.remote.node.common.job_io import JobError, log_line, read_json

TRACKER = "latest_checkpointed_iteration.txt"
# Name in checkpoint.save_contents -> the kind in file names.
KINDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
# Rank and alpha of a LoRA adapter, beside the shards, without which the adapter cannot be merged.
LORA_META = "lora_train_meta.json"


def tracked_step(directory: Path) -> int | None:
    """Return the step from which verl would resume, or None if nothing has been saved yet."""
    try:
        return int((directory / TRACKER).read_text().strip())
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # truncated: PPO does not write it atomically


def step_directory(directory: Path, step: int) -> Path:
    """Return the directory in which verl keeps the checkpoint of ``step``."""
    return directory / f"global_step_{step}"


def world_size(part: Path) -> int | None:
    """Return the number of processes that wrote a checkpoint, or None if it is not recorded.

    Args:
        part: A directory that holds shards.
    """
    config = read_json(part / "fsdp_config.json")
    return config.get("world_size") if isinstance(config, dict) else None


def missing(part: Path, contents: Iterable[str]) -> list[str]:
    """Return the files that a complete checkpoint has and this one lacks; empty if it is complete.

    A truncated file counts as missing: torch writes zip archives, whose table of contents comes last. The shards of a
    LoRA training hold base weights and adapter.

    Args:
        part: A directory that holds shards.
        contents: Required contents, keys of ``KINDS``; other names are ignored.
    """
    processes = world_size(part)
    if processes is None:
        return ["fsdp_config.json"]
    names = [
        f"{KINDS[content]}_world_size_{processes}_rank_{rank}.pt"
        for content in contents
        if content in KINDS
        for rank in range(processes)
    ]
    lacking = [name for name in names if not zipfile.is_zipfile(part / name)]
    if (part / LORA_META).exists() and not read_json(part / LORA_META):
        lacking.append(LORA_META)
    return lacking


@dataclass(frozen=True)
class Layout:
    """The files of a stage's complete checkpoint.

    Attributes:
        processes: Number of processes that train.
        contents: verl's ``checkpoint.save_contents``.
        positions: Files with the position in the data, saved last. A process whose file is missing would start the
            data from the beginning while the others resume, and all of them would wait for each other for ever.
        roles: The subdirectories that hold shards; empty where the checkpoint's directory itself holds them.
    """

    processes: int
    contents: tuple[str, ...]
    positions: tuple[str, ...]
    roles: tuple[str, ...] = ()

    @classmethod
    def sft(cls, processes: int, contents: Iterable[str], replicas: int) -> Layout:
        """Return the layout of SFT's checkpoints.

        Args:
            processes: Number of processes that train.
            contents: verl's ``checkpoint.save_contents``.
            replicas: Number of processes with data of their own.
        """
        return cls(processes, tuple(contents), tuple(f"data_{rank}.pt" for rank in range(replicas)))

    @classmethod
    def ppo(cls, processes: int, contents: Iterable[str]) -> Layout:
        """Return the layout of PPO's checkpoints: actor, critic (if there is one), and ``data.pt``, in this order."""
        return cls(processes, tuple(contents), ("data.pt",), ("actor", "critic"))

    def parts(self, checkpoint: Path) -> list[Path]:
        """Return the directories that must hold shards: the checkpoint itself for SFT.

        Not every PPO has a critic; one that has saves it in every checkpoint. A directory with only one of the two is
        left by verl where it keeps fewer checkpoints of one role than of the other.
        """
        beside = checkpoint.parent
        roles = [r for r in self.roles if r == "actor" or any(beside.glob(f"global_step_*/{r}"))]
        return [checkpoint / role for role in roles] or [checkpoint]

    def is_complete(self, checkpoint: Path) -> bool:
        """Return True if training can resume from this ``global_step_N`` directory."""
        for name in self.positions:
            position = checkpoint / name
            if not zipfile.is_zipfile(position) and not _epoch_end(position).exists():
                return False
        return not any(missing(part, self.contents) for part in self.parts(checkpoint))


def rewind(directory: Path, layout: Layout) -> int:
    """Make verl resume from the newest complete checkpoint, and return its step.

    Call this only while no process trains in ``directory``. It deletes no checkpoint: verl overwrites an incomplete
    one when it reaches that step again.

    Args:
        directory: verl's ``trainer.default_local_dir``.
        layout: The files that a complete checkpoint has.

    Returns:
        The step from which training resumes; 0 if it starts from zero.

    Raises:
        JobError: The checkpoint was written by another number of processes.
    """
    for step, checkpoint in _newest_first(directory):
        _check_processes(checkpoint, layout)
        if layout.is_complete(checkpoint):
            _track(directory, step)
            log_line(f"resuming from step {step}: {checkpoint}")
            return step
        log_line(
            f"the checkpoint of step {step} is incomplete (the job ended while it was written): not used"
        )
    (directory / TRACKER).unlink(missing_ok=True)
    return 0


def prune(directory: Path, layout: Layout, keep: int | None) -> list[int]:
    """Delete checkpoints older than the ``keep`` newest complete ones, and return the deleted steps.

    verl prunes too (``trainer.max_*ckpt_to_keep``), but only checkpoints that the same process has saved, and it leaves
    the directory of a PPO checkpoint behind. Call this only while no process trains in ``directory``. Checkpoints newer
    than the newest complete one are kept: verl overwrites them when it reaches that step again.

    Args:
        directory: verl's ``trainer.default_local_dir``.
        layout: The files that a complete checkpoint has.
        keep: Number of complete checkpoints to keep; None keeps all.
    """
    if not keep:
        return []
    complete, deleted = 0, []
    for step, checkpoint in _newest_first(directory):
        if complete >= keep or (complete and not layout.is_complete(checkpoint)):
            shutil.rmtree(checkpoint, ignore_errors=True)
            deleted.append(step)
        elif layout.is_complete(checkpoint):
            complete += 1
    if deleted:
        steps = ", ".join(map(str, sorted(deleted)))
        log_line(f"deleted the checkpoints of step {steps}: older than the {keep} newest (keep)")
    return deleted


def _newest_first(directory: Path) -> list[tuple[int, Path]]:
    """Return (step, directory) of every checkpoint, complete or not."""
    found = [(path.name.rpartition("_")[2], path) for path in directory.glob("global_step_*")]
    return sorted(((int(step), path) for step, path in found if step.isdigit()), reverse=True)


def start_next_epoch_afresh(checkpoint: Path) -> None:
    """Make training after a checkpoint at the end of an epoch start the next epoch at its beginning.

    verl 0.9.1's SFT trainer restores the data loader's position, here "nothing left", and applies it to the whole
    next epoch: it trains nothing and exits with 0. Without a stored position it starts the next epoch from its
    beginning, which is correct here (``sft_trainer.py: fit``, ``checkpoint_handler.py``). verl's PPO trainers handle
    this case (tests/verl/test_ppo.py).
    """
    for position in checkpoint.glob("data_*.pt"):
        os.replace(position, _epoch_end(position))


def _epoch_end(position: Path) -> Path:
    """Return the name under which a position at the end of an epoch is kept, where verl does not find it."""
    return position.with_name(f"{position.name}.epoch_end")


def _check_processes(checkpoint: Path, layout: Layout) -> None:
    for part in layout.parts(checkpoint):
        writers = world_size(part)
        if writers is not None and writers != layout.processes:
            raise JobError(
                f"{checkpoint} was written by {writers} processes and this job has {layout.processes}: verl can resume "
                "only with the same number. Use the nodes and GPUs per node of the first attempt, or start a new run."
            )


def _track(directory: Path, step: int) -> None:
    if tracked_step(directory) != step:
        temporary = directory / f"{TRACKER}.tmp"
        temporary.write_text(str(step))
        os.replace(temporary, directory / TRACKER)
