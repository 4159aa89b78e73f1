"""FSDP shards to a Hugging Face model: ``merge.py SETTINGS``. Runs on CPUs; needs the model's size in memory twice.

Takes the newest checkpoint and no other: an older one would be a different model than the log promises.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import checkpoints
from job_io import JobError, Settings, read_json, run, say, write_json

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def newest(directory: Path, component: Optional[str]) -> tuple[int, Path]:
    """The newest checkpoint's step, and the directory with its shards.

    :param component: ``actor`` for PPO; None for SFT, whose shards have no directory of their own.
    :raises JobError: there is none, or it is incomplete.
    """
    step = checkpoints.tracked_step(directory)
    if step is None:
        raise JobError(
            f"no checkpoint to merge: {directory}/{checkpoints.TRACKER} does not exist. "
            "The training stage saves at its last step: look at how it ended, and run it again.",
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
            f"{', '.join(lacking[:4])}{' ...' if len(lacking) > 4 else ''}. Run the training stage again: it goes "
            "on from the newest complete checkpoint.",
            kind="checkpoint_incompatible",
        )
    return step, part


def source_of(part: Path, step: int) -> dict[str, Any]:
    """What tells this checkpoint from any other: its place, and its shards' sizes and times."""
    shards = {}
    for path in sorted(part.glob("model_world_size_*.pt")):
        stat = path.stat()
        shards[path.name] = [stat.st_size, stat.st_mtime_ns]
    return {"checkpoint": str(part), "step": step, "shards": shards}


def lacking_in_model(model: Path) -> list[str]:
    """What a directory needs to be a model that transformers can load, and does not have."""
    lacking = [] if read_json(model / "config.json") else ["config.json"]
    if not any((model / name).is_file() for name in TOKENIZERS):
        lacking.append("a tokenizer")
    index = read_json(model / "model.safetensors.index.json")
    weights = set(index["weight_map"].values()) if index else {"model.safetensors"}
    if not (model / "model.safetensors").is_file() and not index:
        bins = [path.name for path in model.glob("pytorch_model*.bin")]
        weights = set(bins) or weights
    lacking += sorted(
        name for name in weights if not (model / name).is_file() or not (model / name).stat().st_size
    )
    return lacking


def merge(settings: Settings) -> dict[str, Any]:
    """Merge the newest checkpoint into ``output_dir``, unless that was made from it already.

    :returns: ``{"model_path", "step", "skipped"}``.
    :raises JobError: no complete checkpoint, or verl's merger failed.
    """
    step, part = newest(Path(settings["checkpoint_dir"]), settings.get("component"))
    output = Path(settings["output_dir"])
    source, marker = source_of(part, step), output.with_name(f"{output.name}.source.json")
    result = {"model_path": str(output), "step": step, "skipped": False}
    if read_json(marker) == source and not lacking_in_model(output):
        say(f"{output} was already merged from step {step}: nothing to do. To merge again, remove {marker}")
        return {**result, "skipped": True}

    say(f"merging {part} (step {step}, {checkpoints.world_size(part)} shards) into {output}")
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend=fsdp"]
    command += [f"--local_dir={part}", f"--target_dir={unfinished}"]
    ended = subprocess.run(command, env={"HF_HUB_OFFLINE": "1", **os.environ})
    if ended.returncode:
        killed = "; killed, most likely for lack of memory: raise merge.mem" if ended.returncode == -9 else ""
        raise JobError(
            f"verl.model_merger failed with exit code {ended.returncode} (its output is above){killed}"
        )
    if lacking := lacking_in_model(unfinished):
        raise JobError(
            f"verl.model_merger wrote an incomplete model to {unfinished}: no {', no '.join(lacking)}"
        )
    marker.unlink(missing_ok=True)
    shutil.rmtree(output, ignore_errors=True)
    unfinished.rename(output)
    write_json(marker, source)
    return result


if __name__ == "__main__":
    run(merge)
