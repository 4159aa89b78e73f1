"""verl's FSDP checkpoints on disk: which are complete, and where training goes on.

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
from typing import Optional

from job_io import JobError, read_json, say

TRACKER = "latest_checkpointed_iteration.txt"
# The names of checkpoint.save_contents, and the files that they become.
KINDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}


def tracked_step(directory: Path) -> Optional[int]:
    """The step that verl would resume from, or None when nothing was saved yet."""
    try:
        return int((directory / TRACKER).read_text().strip())
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # cut off while it was written (PPO does not write it atomically)


def step_directory(directory: Path, step: int) -> Path:
    """Where verl keeps the checkpoint of ``step``."""
    return directory / f"global_step_{step}"


def world_size(part: Path) -> Optional[int]:
    """How many processes wrote this checkpoint, or None when it does not say.

    :param part: a directory that holds shards.
    """
    config = read_json(part / "fsdp_config.json")
    return config.get("world_size") if isinstance(config, dict) else None


def missing(part: Path, contents: Iterable[str]) -> list[str]:
    """The files that a complete checkpoint would have and this one lacks; empty when it is complete.

    A file that was cut off counts as missing: torch writes zip archives, whose table of contents comes last.

    :param part: a directory that holds shards.
    :param contents: what must be there, of ``KINDS``; other words are ignored.
    """
    processes = world_size(part)
    if processes is None:
        return ["fsdp_config.json"]
    names = [
        f"{KINDS[word]}_world_size_{processes}_rank_{rank}.pt"
        for word in contents
        if word in KINDS
        for rank in range(processes)
    ]
    return [name for name in names if not zipfile.is_zipfile(part / name)]


@dataclass(frozen=True)
class Layout:
    """What a stage's complete checkpoint consists of.

    :param processes: how many processes train.
    :param contents: verl's ``checkpoint.save_contents``.
    :param roles: the directories below it that hold shards; none where it holds them itself.
    :param positions: the files that keep the place in the data, saved last. One that is missing would make
        that process start the data anew while the others go on, and all wait for each other for ever.
    """

    processes: int
    contents: tuple[str, ...]
    positions: tuple[str, ...]
    roles: tuple[str, ...] = ()

    @classmethod
    def sft(cls, processes: int, contents: Iterable[str], replicas: int) -> Layout:
        """:param replicas: processes with data of their own."""
        return cls(processes, tuple(contents), tuple(f"data_{rank}.pt" for rank in range(replicas)))

    @classmethod
    def ppo(cls, processes: int, contents: Iterable[str]) -> Layout:
        """Actor, then critic if there is one, then ``data.pt``, in this order."""
        return cls(processes, tuple(contents), ("data.pt",), ("actor", "critic"))

    def parts(self, checkpoint: Path) -> list[Path]:
        """The directories that must hold shards: the checkpoint itself for SFT.

        Not every PPO has a critic; one that has, has it in every checkpoint. A folder without one of its two is what
        verl leaves where it keeps fewer of the one than of the other.
        """
        beside = checkpoint.parent
        roles = [r for r in self.roles if r == "actor" or any(beside.glob(f"global_step_*/{r}"))]
        return [checkpoint / role for role in roles] or [checkpoint]

    def is_complete(self, checkpoint: Path) -> bool:
        """Whether training can go on from this ``global_step_N`` directory."""
        for name in self.positions:
            position = checkpoint / name
            if not zipfile.is_zipfile(position) and not _set_aside(position).exists():
                return False
        return not any(missing(part, self.contents) for part in self.parts(checkpoint))


def rewind(directory: Path, layout: Layout) -> int:
    """Point verl at the newest complete checkpoint, and say which one that is.

    To be called while nobody trains here. Deletes nothing: verl overwrites an incomplete checkpoint when it
    comes to that step again.

    :param directory: verl's ``trainer.default_local_dir``.
    :returns: the step that training goes on from; 0 when it starts afresh.
    :raises JobError: the checkpoint was written by another number of processes.
    """
    for step, checkpoint in _newest_first(directory):
        _check_processes(checkpoint, layout)
        if layout.is_complete(checkpoint):
            _track(directory, step)
            say(f"going on from step {step}: {checkpoint}")
            return step
        say(f"the checkpoint of step {step} is incomplete (the job ended while it was written): not used")
    (directory / TRACKER).unlink(missing_ok=True)
    return 0


def prune(directory: Path, layout: Layout, keep: Optional[int]) -> list[int]:
    """Delete checkpoints older than the ``keep`` newest complete ones; the steps that are gone.

    verl prunes too (``trainer.max_*ckpt_to_keep``), but knows only those that this very process has saved, and leaves a
    PPO checkpoint's folder behind. To be called while nobody trains here. What is newer than the newest complete one
    stays: verl overwrites it when it comes to that step again.

    :param keep: None keeps all.
    """
    if not keep:
        return []
    complete, gone = 0, []
    for step, checkpoint in _newest_first(directory):
        if complete >= keep or (complete and not layout.is_complete(checkpoint)):
            shutil.rmtree(checkpoint, ignore_errors=True)
            gone.append(step)
        elif layout.is_complete(checkpoint):
            complete += 1
    if gone:
        say(
            f"deleted older checkpoints than the {keep} newest (keep): of step {', '.join(map(str, sorted(gone)))}"
        )
    return gone


def _newest_first(directory: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every checkpoint, complete or not."""
    found = [(path.name.rpartition("_")[2], path) for path in directory.glob("global_step_*")]
    return sorted(((int(step), path) for step, path in found if step.isdigit()), reverse=True)


def start_next_epoch_afresh(checkpoint: Path) -> None:
    """Keep a checkpoint that stands at the end of an epoch from swallowing the next one.

    verl 0.9.1's SFT trainer restores the data loader's position, here "nothing left", and takes that for the
    whole next epoch: it trains nothing and exits with 0. Without a stored position it starts the epoch that
    follows from its beginning, which is where it stands (``sft_trainer.py: fit``, ``checkpoint_handler.py``). Its PPO
    trainers know better (tests/jobs/test_real_ppo.py).
    """
    for position in checkpoint.glob("data_*.pt"):
        os.replace(position, _set_aside(position))


def _set_aside(position: Path) -> Path:
    return position.with_name(f"{position.name}.epoch_end")


def _check_processes(checkpoint: Path, layout: Layout) -> None:
    for part in layout.parts(checkpoint):
        wrote = world_size(part)
        if wrote is not None and wrote != layout.processes:
            raise JobError(
                f"{checkpoint} was written by {wrote} processes and this job has {layout.processes}: verl can resume "
                "only with the same number. Use the nodes and GPUs per node of the first attempt, or start a new run."
            )


def _track(directory: Path, step: int) -> None:
    if tracked_step(directory) != step:
        temporary = directory / f"{TRACKER}.tmp"
        temporary.write_text(str(step))
        os.replace(temporary, directory / TRACKER)
