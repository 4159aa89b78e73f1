"""Stage merge: FSDP shards to a Hugging Face model (``python node.pyz merge SETTINGS``).

Runs on CPUs and needs twice the model's size in memory. Only the newest checkpoint is merged: an older one would be
another model than the training's log reports.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from llm_bridge.remote.node.common.job_io import JobError, Settings, log_line, read_json, run, write_json
from llm_bridge.remote.node.hub import loadable
from llm_bridge.remote.node.verl import adapter, checkpoints
from llm_bridge.remote.node.verl.compare_models import same_as_base


def newest(directory: Path, component: str | None) -> tuple[int, Path]:
    """Return the step of the newest checkpoint and the directory with its shards.

    Args:
        directory: Directory of the checkpoints.
        component: "actor" for PPO; None for SFT, whose shards have no subdirectory.

    Raises:
        JobError: There is no checkpoint, or the newest one is incomplete.
    """
    step = checkpoints.tracked_step(directory)
    if step is None:
        raise JobError(
            f"no checkpoint to merge: {directory}/{checkpoints.TRACKER} does not exist. "
            "The training stage saves at its last step: read the end of its log, and run it again.",
            kind="missing_path",
        )
    part = checkpoints.step_directory(directory, step) / (component or "")
    if not part.is_dir():
        raise JobError(
            f"no checkpoint to merge: {directory}/{checkpoints.TRACKER} names step {step}, but {part} does not exist",
            kind="missing_path",
        )
    if lacking := checkpoints.missing(part, ["model"]):
        raise JobError(
            f"the checkpoint of step {step} is incomplete, {len(lacking)} file(s) missing or cut off in {part}: "
            f"{', '.join(lacking[:4])}{' ...' if len(lacking) > 4 else ''}. Run the training stage again: it "
            "resumes from the newest complete checkpoint.",
            kind="checkpoint_incompatible",
        )
    return step, part


def source_of(part: Path, step: int) -> dict[str, Any]:
    """Return the identity of a checkpoint: its path, its step, and the sizes and modification times of its shards.

    Args:
        part: Directory with the shards.
        step: Step of the checkpoint.
    """
    shards = {}
    for path in sorted(part.glob("model_world_size_*.pt")):
        stat = path.stat()
        shards[path.name] = [stat.st_size, stat.st_mtime_ns]
    return {"checkpoint": str(part), "step": step, "shards": shards}


def check_trained(model: Path, base: Path) -> None:
    """Refuse a merged model that equals the model that training started from.

    Args:
        model: Folder of the merged model.
        base: Folder of the model that training started from.

    Raises:
        JobError: Both are equal, or ``base`` cannot be read.
    """
    try:
        equal = same_as_base(base, model)
    except Exception as error:  # torch, pickle and safetensors raise different types
        raise JobError(
            f"cannot compare {model} with the model that training started from, {base}: {error!r}. Restore that "
            "model, and run the merge again.",
            kind="missing_path",
        ) from error
    if equal:
        raise JobError(
            f"training changed nothing: all {len(equal)} tensors of {model} equal those of {base}, which training "
            "started from. Check the loss or the rewards in the training's log, and the recipe's verl settings: a "
            "learning rate of 0, or one whose steps are lost in the rounding to bfloat16, in which models are saved; "
            "frozen weights; trainer.critic_warmup, before which the actor is not trained.",
            kind="bad_config",
        )
    if equal is not None:
        log_line(
            f"WARNING: no tensor of {model} has a counterpart in {base}: cannot check that training changed the model"
        )


def merge(settings: Settings) -> dict[str, Any]:
    """Merge the newest checkpoint into ``output_dir``, unless it has been merged already.

    Args:
        settings: The stage's settings: ``checkpoint_dir``, ``component``, ``output_dir``, ``trained_from``, and
            ``adapter_of`` (the base model's repository) where the output is to be a LoRA adapter instead of a model.

    Returns:
        ``{"model_path", "step", "skipped"}``.

    Raises:
        JobError: There is no complete checkpoint, verl's merger failed, or training changed nothing.
    """
    step, part = newest(Path(settings["checkpoint_dir"]), settings.get("component"))
    output, base = Path(settings["output_dir"]), Path(settings["trained_from"])
    # The base is part of the marker, so that a model that was merged without the comparison is merged again.
    source = {**source_of(part, step), "trained_from": str(base)}
    problems_of = loadable.problems
    if adapter_of := settings.get("adapter_of"):
        source["adapter_of"] = adapter_of
        problems_of = loadable.adapter_problems
    marker = output.with_name(f"{output.name}.source.json")
    result = {"model_path": str(output), "step": step, "skipped": False}
    if read_json(marker) == source and output.is_dir() and not problems_of(output):
        log_line(
            f"{output} was already merged from step {step}: nothing to do. To merge again, remove {marker}"
        )
        return {**result, "skipped": True}

    log_line(f"merging {part} (step {step}, {checkpoints.world_size(part)} shards) into {output}")
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend=fsdp"]
    command += [f"--local_dir={part}", f"--target_dir={unfinished}"]
    ended = subprocess.run(command, env={"HF_HUB_OFFLINE": "1", **os.environ})
    if ended.returncode:
        killed = (
            "; killed, most likely because memory ran out: raise merge.mem" if ended.returncode == -9 else ""
        )
        raise JobError(
            f"verl.model_merger failed with exit code {ended.returncode} (its output is above){killed}"
        )
    if problems := loadable.problems(unfinished):
        raise JobError(f"verl.model_merger wrote an incomplete model to {unfinished}: {'; '.join(problems)}")
    lora = adapter.find(unfinished, part)
    if adapter_of:
        if not lora:
            raise JobError(
                f"hub.lora is 'adapter', but {part} holds no LoRA adapter: train again with lora_rank in the recipe's "
                "verl settings, or set hub.lora to merged.",
                kind="bad_config",
            )
        adapter.keep_only(unfinished, lora, adapter_of)
    else:
        if lora:
            adapter.merge_into(unfinished, lora)
        check_trained(unfinished, base)
    if problems := problems_of(unfinished):
        raise JobError(f"the merge wrote an incomplete model to {unfinished}: {'; '.join(problems)}")
    marker.unlink(missing_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    unfinished.rename(output)
    write_json(marker, source)
    return result


def main() -> None:
    """Run the program (``python node.pyz merge SETTINGS``)."""
    run(merge)
