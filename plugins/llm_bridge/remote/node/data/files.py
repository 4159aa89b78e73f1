"""Find the files of a split: in a data set that is laid out as on the Hub, or by a path or pattern on the cluster."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote.node.common.job_io import JobError

KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv"}
README = "README.md"
_KNOWN_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_NAMED = 10


def kind_of(name: str) -> Optional[str]:
    """Return the kind of a data file by its suffix; None for other files."""
    return KINDS.get(os.path.splitext(name)[1])


def is_pattern(source: str) -> bool:
    """Return True if a source is a file or a pattern of files, and not a directory or a data set on the Hub."""
    return source.startswith("/") and kind_of(source) is not None


def matching(source: str) -> list[Path]:
    """Return the files of a path or pattern, sorted.

    Raises:
        JobError: There are none.
    """
    found = sorted(glob.glob(source, recursive=True)) if glob.has_magic(source) else [source]
    files = [Path(name) for name in found if os.path.isfile(name)]
    if not files:
        raise JobError(
            f"data.source: {source} is no file on this node. Correct the path in the recipe, or copy the data there.",
            kind="missing_path",
        )
    return files


def declared_configs(readme: str) -> list[dict[str, Any]]:
    """Return the configurations that the front matter of a data set's README declares; none where it declares none."""
    found = re.match(r"\s*---\n(.*?)\n---", readme.replace("\r\n", "\n"), re.DOTALL)
    if not found:
        return []
    import yaml

    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return []
    configs = values.get("configs") if isinstance(values, dict) else None
    return [entry for entry in configs or [] if isinstance(entry, dict) and entry.get("data_files")]


def choose(names: Sequence[str], readme: str, config: Optional[str], split: str) -> list[str]:
    """Return the files of one split of a data set, sorted; none where it has no such split.

    Args:
        names: All files of the data set, relative to its directory.
        readme: Text of its README.
        config: Name of the configuration; None takes the only one, or the default.
        split: Name of the split.

    Raises:
        ValueError: The data set has several configurations and none is chosen, or not this one.
    """
    data = sorted(
        name for name in names if kind_of(name) and not any(p.startswith(".") for p in name.split("/"))
    )
    configs = declared_configs(readme)
    if configs:
        by_name = {str(entry.get("config_name", "default")): entry for entry in configs}
        default = next((name for name, entry in by_name.items() if entry.get("default")), "default")
        wanted = config or (next(iter(by_name)) if len(by_name) == 1 else default)
        if wanted in by_name:
            entry = by_name[wanted]
            folder = str(entry.get("data_dir") or "")
            return _declared(data, entry["data_files"], folder, split)
        if not _below(data, wanted):
            problem = f"has no configuration {config}" if config else "has several configurations"
            raise ValueError(f"{problem}: set config to one of {', '.join(sorted(by_name))}")
    inside = _below(data, config) if config else []
    inside = inside or _below(data, "data") or [name for name in data if "/" not in name] or data
    return _of_split(inside, split)


def _below(names: Sequence[str], folder: str) -> list[str]:
    return [name for name in names if name.startswith(f"{folder}/")]


def _declared(names: Sequence[str], data_files: Any, folder: str, split: str) -> list[str]:
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            entry = {"split": "train", "path": entry}
        of_split = entry if "path" in entry else {"split": split, "path": entry.get(split, [])}
        if str(of_split.get("split", "train")) == split:
            paths = of_split["path"]
            patterns += [paths] if isinstance(paths, str) else list(paths)
    patterns = [os.path.join(folder, pattern) for pattern in patterns]
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _of_split(names: Sequence[str], split: str) -> list[str]:
    def has(name: str, word: str) -> bool:
        return re.search(rf"(^|[/._-]){re.escape(word)}([/._-]|$)", name) is not None

    found = [name for name in names if has(name, split)]
    if not found and split == "train" and not any(has(n, known) for n in names for known in _KNOWN_SPLITS):
        return list(names)
    return found


def list_directory(directory: Path) -> tuple[list[str], str]:
    """Return all files of a directory, relative to it, and the text of its README.

    Raises:
        JobError: It does not exist or cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    names = []
    try:
        for folder, folders, files in os.walk(directory, onerror=fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names += [os.path.relpath(os.path.join(folder, name), directory) for name in files]
        readme = (directory / README).read_text("utf-8", "replace") if README in names else ""
    except OSError as error:
        raise JobError(
            f"data.source: {error.filename or directory}: {error.strerror} on this node", kind="missing_path"
        ) from error
    return names, readme


def no_split(where: str, split: str, names: Sequence[str]) -> JobError:
    """Return the error for a data set without a split."""
    data = [name for name in names if kind_of(name)]
    more = f" and {len(data) - _NAMED} more" if len(data) > _NAMED else ""
    has = (
        f"its data files: {', '.join(data[:_NAMED])}{more}" if data else f"it has no {', '.join(KINDS)} file"
    )
    return JobError(
        f"data.source: {where} has no split {split}; {has}. Set split or config in the recipe, or name the files.",
        kind="missing_path",
    )
