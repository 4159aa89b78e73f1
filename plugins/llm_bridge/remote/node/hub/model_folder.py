"""Selection of the files of a model folder for the Hub, and the check that they are a complete model."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote.node.hub.loadable import ADAPTER_CONFIG, adapter_config_problems, may_be_tokenizer
from llm_bridge.remote.node.hub.upload_filter import exclusion_by_content, exclusion_by_name
from llm_bridge.remote.node.hub.weight_files import (
    Corrupt,
    check_torch_file,
    index_of,
    json_object,
    missing_shards,
    safetensors_names,
)

# Patterns of file names.
WEIGHTS = ("*.safetensors", "*.bin")
# The usual ones; which files a tokenizer has is known to transformers only.
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken")
INDEXES = ("*.safetensors.index.json", "*.bin.index.json")
# Files that a loader reads as JSON objects.
JSON_OBJECTS = (
    *("*config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("chat_template.json", *INDEXES),
)
# Files without which a loader cannot load the model: they are never left out.
REQUIRED = (*JSON_OBJECTS, *TOKENIZERS, "merges.txt", "*.jinja", "*.py")


class NotAModel(Exception):
    """The folder is missing, or is not a complete model; the message lists all problems."""


@dataclass
class LocalFile:
    """One file to upload.

    Attributes:
        path: Path in the repository, with "/" as separator.
        full: Path of the file on this machine.
        operation: The same as a ``CommitOperationAdd`` of huggingface_hub, which remembers what was sent of it.
    """

    path: str
    full: Path
    operation: Any

    @property
    def size(self) -> int:
        """Size in bytes."""
        return int(self.operation.upload_info.size)

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, in hexadecimal; the file is read for it, unless an upload by Xet has hashed it."""
        return str(self.operation.upload_info.sha256.hex())


@dataclass
class FolderContent:
    """Files of a model folder, divided by what happens to them.

    Attributes:
        kept: Files to upload.
        left_out: Reason by relative path; a folder (with a final "/") includes all files in it.
        problems: Descriptions of files that may neither be uploaded nor left out.
    """

    kept: list[Path]
    left_out: dict[str, str]
    problems: list[str]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return True if a file name matches one of the shell patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def find_files(model_dir: Path) -> FolderContent:
    """Select the files to upload; links to folders are not followed, because huggingface_hub does not follow them.

    Args:
        model_dir: Path of the model folder.

    Raises:
        NotAModel: The folder does not exist.
    """
    if not model_dir.is_dir():
        raise NotAModel(f"the model directory {model_dir} does not exist")
    content = FolderContent([], {}, [])
    for directory, folders, names in os.walk(model_dir, onerror=_raise):
        for name in sorted([*folders, *names]):
            full = Path(directory) / name
            path = full.relative_to(model_dir).as_posix()
            is_folder, reason = full.is_dir(), _exclusion(model_dir, full)
            if not reason and (problem := _name_problem(name)):
                content.problems.append(f"{printable(path)} {problem}")
            elif full.is_symlink() and (problem := _link_problem(model_dir, full)):
                content.problems.append(f"{path} {problem}")
            elif reason:
                content.left_out[path + "/" * is_folder] = reason
            elif not is_folder:
                _add_file(content, path, full)
            if is_folder and (reason or full.is_symlink()) and name in folders:
                folders.remove(name)
    content.kept.sort()
    return content


def _raise(error: OSError) -> None:
    raise error  # os.walk ignores by default a folder that it cannot read


def printable(path: str) -> str:
    """Return a path as text: a byte that is not UTF-8, and a control character, as its escape sequence."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _name_problem(name: str) -> Optional[str]:
    """Return the reason why the Hub, or a client that downloads from it, cannot have a file of this name."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "has a name that is not UTF-8: rename or remove it"
    if "\\" in name or not name.isprintable():
        return "has a backslash or a control character in its name: rename or remove it"
    return None


def _link_problem(model_dir: Path, link: Path) -> Optional[str]:
    """Return the reason why a link is refused: its target is outside of the folder or missing; None if it is good."""
    target = Path(os.path.realpath(link))
    subject = f"is a link to {os.readlink(link)}"
    if Path(os.path.realpath(model_dir)) not in (target, *target.parents):
        return f"{subject}, outside of the model directory: remove it, or replace it with a copy of the file"
    return None if target.exists() else f"{subject}, which does not exist"


def _exclusion(model_dir: Path, full: Path) -> Optional[str]:
    """Return the reason to leave out a file or folder by its name or type, or by the name of a link's target."""
    is_folder = full.is_dir()
    if reason := exclusion_by_name(full.name, folder=is_folder):
        return reason
    if not full.is_symlink():
        return None if is_folder or stat.S_ISREG(full.stat().st_mode) else "not a regular file"
    root, target = Path(os.path.realpath(model_dir)), Path(os.path.realpath(full))
    if target != root and root not in target.parents:
        return None
    parts = target.relative_to(root).parts
    for number, part in enumerate(parts, 1):
        if reason := exclusion_by_name(part, folder=number < len(parts) or is_folder):
            return f"a link to {'/'.join(parts)}: {reason}"
    return "a link to a folder, whose files are uploaded from the folder itself" if is_folder else None


def _add_file(content: FolderContent, path: str, full: Path) -> None:
    """Keep a file unless it contains a secret."""
    reason = exclusion_by_content(full)
    if reason and matches(full.name, REQUIRED):
        content.problems.append(
            f"{path} {reason}: remove it from the file, and revoke it and use a new one everywhere"
        )
    elif reason:
        content.left_out[path] = reason
    else:
        content.kept.append(full)


def check_model(model_dir: Path, content: FolderContent) -> None:
    """Refuse a directory that a loader could not load as a model, or as an adapter of one.

    Args:
        model_dir: Path of the model folder.
        content: Result of :func:`find_files`.

    Raises:
        NotAModel: Files are missing, corrupt or not publishable; the message lists all of them.
    """
    top = {file.name: file for file in content.kept if file.parent == model_dir}
    weights = [name for name in top if matches(name, WEIGHTS)]
    problems = list(content.problems)
    is_adapter = ADAPTER_CONFIG in top and "config.json" not in top
    if is_adapter:
        problems += adapter_config_problems(top[ADAPTER_CONFIG])
    elif "config.json" not in top and not any(text.startswith("config.json ") for text in problems):
        problems.append("config.json is missing")
    if is_adapter and not any(matches(name, ("adapter_model.*",)) for name in weights):
        problems.append(
            "the adapter's weights are missing: no adapter_model.safetensors or adapter_model.bin"
        )
    elif not weights:
        problems.append(f"weights are missing: no file matches {' or '.join(WEIGHTS)}")
    if not any(map(may_be_tokenizer, top)):
        problems.append("tokenizer files are missing: there are only configuration, weights and texts")
    for folder in sorted({file.parent for file in content.kept}):
        problems += _problems(model_dir, [file for file in content.kept if file.parent == folder])
    problems = list(dict.fromkeys(problems))
    if problems:
        raise NotAModel(
            f"{model_dir} is not a complete Hugging Face model, or must not be published:\n  - "
            + "\n  - ".join(problems)
            + "\nNothing was uploaded. Merge a trainer's checkpoint first (stage merge) and save the tokenizer in the "
            "same folder; copy or merge again what is cut off or corrupt."
        )


def _problems(model_dir: Path, files: list[Path]) -> list[str]:
    """Return the problems of the files of one folder."""
    here = {file.name: file for file in files}
    prefix = "".join(f"{part}/" for part in files[0].parent.relative_to(model_dir).parts)
    problems: list[str] = []
    shards: dict[str, set[str]] = {}  # tensor names by file
    indexes: dict[str, dict[str, str]] = {}  # weight map by file
    for name, file in here.items():
        try:
            if not file.stat().st_size and matches(name, (*WEIGHTS, *TOKENIZERS, "merges.txt")):
                raise Corrupt("is empty")
            if matches(name, JSON_OBJECTS):
                content = json_object(file.read_bytes())
                if matches(name, INDEXES):
                    indexes[name] = _weight_map(content)
            elif name.endswith(".safetensors"):
                shards[name] = safetensors_names(file)
            elif name.endswith((".bin", ".pt", ".pth")):
                check_torch_file(
                    file, must_be_torch=matches(name, ("*pytorch_model*.bin", "adapter_model*.bin"))
                )
        except Corrupt as error:
            problems.append(f"{prefix}{name} {error}")
    missing = {
        shard: f"{prefix}{shard} is missing: {other} is there" for shard, other in missing_shards(here)
    }
    for name, weight_map in indexes.items():
        named = set(weight_map.values())
        missing |= {shard: f"{prefix}{shard} is missing, but {name} names it" for shard in named - set(here)}
        for shard in sorted(named & set(shards)):
            lacking = sorted({tensor for tensor, at in weight_map.items() if at == shard} - shards[shard])
            if lacking:
                problems.append(
                    f"{prefix}{shard} lacks {len(lacking)} tensors that {name} names, as {lacking[0]}"
                )
    wanted = {index for name in here if not prefix and (index := index_of(name)) and index not in here}
    problems += [
        f"{index} is missing: without it a loader does not find the shards" for index in sorted(wanted)
    ]
    return problems + [missing[shard] for shard in sorted(missing)]


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    """Return the file name of each tensor, from the content of an index file."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Corrupt("has no weight_map, or an empty one")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise Corrupt("has a weight_map that does not map each tensor to a file's name")
    return weight_map


def difference(local: LocalFile, remote: Any) -> str:
    """Return the difference between a local and a remote file; an empty text if they are equal.

    Args:
        local: The local file.
        remote: The remote file, a ``RepoFile`` of huggingface_hub; None if it does not exist.
    """
    if remote is None:
        return "is not on the Hub"
    if remote.size != local.size:
        return f"has {remote.size} bytes on the Hub, {local.size} here"
    if remote.lfs is not None:
        same = remote.lfs.sha256 == local.sha256
    else:  # a small file in git itself, for which the Hub has only git's hash
        data = local.full.read_bytes()
        same = remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return "" if same else "has other content on the Hub"
