"""A model folder on disk: which of its files go to the Hub, and whether anybody could load it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `.git` and `.cache` are refused by huggingface_hub itself; `*.tmp` is what a killed save leaves behind.
IGNORED = ("*.tmp", ".git/*", "*/.git/*", ".cache/*", "*/.cache/*")

# Weights, but not what trainers leave beside them under the same ending.
WEIGHTS = ("*.safetensors", "*.bin")
NOT_WEIGHTS = ("training_args.bin", "optimizer*.bin", "scheduler*.bin", "random_states*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken")


class NotAModel(Exception):
    """The folder is missing, or holds no complete model; the text names all that is missing."""


@dataclass
class LocalFile:
    """One file of the model directory and its content's hash."""

    path: str
    full: Path
    size: int
    sha256: str


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def find_files(model_dir: Path) -> tuple[list[Path], list[str]]:
    """Files to upload, and the paths left out on purpose."""
    if not model_dir.is_dir():
        raise NotAModel(f"the model directory {model_dir} does not exist")
    kept, skipped = [], []
    for full in sorted(model_dir.glob("**/*")):  # the same walk as huggingface_hub's upload_folder
        if full.is_file():
            path = full.relative_to(model_dir).as_posix()
            if matches(path, IGNORED):
                skipped.append(path)
            else:
                kept.append(full)
    return kept, skipped


def check_model(model_dir: Path, files: list[Path]) -> None:
    """Refuse a directory from which nobody could load a model, naming everything that is missing."""
    top = {file.name: file for file in files if file.parent == model_dir}
    weights = [name for name in top if matches(name, WEIGHTS) and not matches(name, NOT_WEIGHTS)]
    problems = []
    if "config.json" not in top:
        problems.append("config.json is missing")
    if not weights:
        problems.append(f"weights are missing: no file matches {' or '.join(WEIGHTS)}")
    if not any(matches(name, TOKENIZERS) for name in top):
        problems.append(f"tokenizer files are missing: no file matches {', '.join(TOKENIZERS)}")
    for name in ("config.json", *weights):
        if name in top and top[name].stat().st_size == 0:
            problems.append(f"{name} is empty")
    for index in (name for name in top if name.endswith((".safetensors.index.json", ".bin.index.json"))):
        try:
            shards = set(json.loads(top[index].read_text(encoding="utf-8"))["weight_map"].values())
            problems += [f"{shard} is missing, but {index} names it" for shard in sorted(shards - set(top))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{index} cannot be read: {error!r}")
    if problems:
        raise NotAModel(
            f"{model_dir} is not a complete Hugging Face model:\n  - " + "\n  - ".join(problems) + "\n"
            "A trainer's own checkpoint has to be merged first (the merge stage does it), and the tokenizer "
            "saved beside it."
        )


def hash_file(model_dir: Path, full: Path) -> LocalFile:
    digest, size = hashlib.sha256(), 0
    with full.open("rb") as file:
        while chunk := file.read(4 * 1024 * 1024):
            digest.update(chunk)
            size += len(chunk)
    return LocalFile(full.relative_to(model_dir).as_posix(), full, size, digest.hexdigest())


def difference(local: LocalFile, remote: Any) -> str:
    """Why the remote file (a RepoFile of huggingface_hub, or None) is not the local one; empty if it is."""
    if remote is None:
        return "is not on the Hub"
    if remote.size != local.size:
        return f"has {remote.size} bytes on the Hub, {local.size} here"
    if remote.lfs is not None:
        same = remote.lfs.sha256 == local.sha256
    else:  # a small file in git itself: the Hub knows only git's own hash of it
        data = local.full.read_bytes()
        same = remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return "" if same else "has other content on the Hub"
