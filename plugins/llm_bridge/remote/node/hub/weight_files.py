"""Checks of weight files by their headers: each file is complete, and every shard of a set is present."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

# Bytes of one number by data type; types of less than a byte (F4, F6) are omitted, and their sizes are not checked.
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
MAX_HEADER_BYTES = 100_000_000  # safetensors refuses a longer header
LFS_POINTER = b"version https://git-lfs"

_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5,})-of-(?P<total>\d{5,})(?P<ending>\.[A-Za-z0-9]+)")


class Corrupt(Exception):
    """A file's content does not match its name; the message completes a sentence that begins with the file's name."""


def safetensors_names(file: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file.

    Args:
        file: Path of the file.

    Raises:
        Corrupt: The header cannot be read, or does not describe the rest of the file to the byte.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if LFS_POINTER.startswith(start) and len(start) == 8:
            raise Corrupt("is a Git LFS pointer and not the weights themselves: run 'git lfs pull'")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise Corrupt(f"is cut off or corrupt: it has {size} bytes and no whole safetensors header")
        raw = opened.read(length)
    header = json_object(raw, "has a corrupt safetensors header, which")
    header.pop("__metadata__", None)
    if not header:
        raise Corrupt("holds no tensor")
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(*item)):
        begin, end = entry["data_offsets"]
        item_bytes = DTYPE_BYTES.get(entry["dtype"])
        if begin != position or end < begin:
            raise Corrupt(f"has a corrupt safetensors header: {name!r} is at bytes {begin} to {end}")
        if item_bytes is not None and end - begin != math.prod(entry["shape"]) * item_bytes:
            raise Corrupt(f"has a corrupt safetensors header: shape and bytes of {name!r} differ")
        position = end
    if size != 8 + length + position:
        problem = "cut off" if size < 8 + length + position else "corrupt"
        raise Corrupt(f"is {problem}: it has {size} bytes, and its header describes {8 + length + position}")
    return set(header)


def _begin(name: str, entry: Any) -> tuple[int, int]:
    """Return the byte range of an entry; in sorted order an empty tensor precedes others that begin at its byte."""
    try:
        begin, end = entry["data_offsets"]
        numbers = [begin, end, *entry["shape"]]
        if isinstance(entry["dtype"], str) and all(type(number) is int and number >= 0 for number in numbers):
            return begin, end
    except (KeyError, TypeError, ValueError):
        pass
    raise Corrupt(f"has a corrupt safetensors header: the entry of {name!r} is {entry!r:.80}")


def check_torch_file(file: Path, *, must_be_torch: bool) -> None:
    """Check a file of ``torch.save``: a zip archive, whose table of contents comes last, or an old plain pickle.

    Args:
        file: Path of the file.
        must_be_torch: True to refuse a file that is neither; other programs write files with the same suffix.

    Raises:
        Corrupt: The file is cut off, or is not a file of ``torch.save``.
    """
    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise Corrupt("is a Git LFS pointer and not the weights themselves: run 'git lfs pull'")
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            raise Corrupt("is cut off or corrupt: its zip archive has no table of contents") from None
        if must_be_torch and not any(name.endswith("data.pkl") for name in names):
            raise Corrupt("is no file of torch.save: its zip archive has no data.pkl")
    elif must_be_torch and not start.startswith(b"\x80"):
        raise Corrupt("is no file of torch.save: neither a zip archive nor a pickle")


def json_object(raw: bytes, subject: str = "") -> dict[str, Any]:
    """Return the JSON object in UTF-8 bytes.

    Args:
        raw: The bytes.
        subject: Text before the verb of the error message.

    Raises:
        Corrupt: The bytes are not JSON, or not a JSON object.
    """
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{subject} is not valid JSON ({error})".lstrip()) from None
    if not isinstance(value, dict):
        raise Corrupt(f"{subject} must be a JSON object, not a {type(value).__name__}".lstrip())
    return value


def missing_shards(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the missing shards of each set, each with the name of a shard of the same set that is present.

    Args:
        names: Names of the files of one folder, such as ``model-00001-of-00003.safetensors``.
    """
    present, missing = set(names), []
    sets: dict[tuple[str, str, str], str] = {}
    for name in sorted(present):
        if found := _SHARD.fullmatch(name):
            sets.setdefault((found["name"], found["total"], found["ending"]), name)
    for (stem, total, ending), example in sets.items():
        # Shards are numbered from 1; a few old models number them from 0.
        first = 0 if f"{stem}-{0:0{len(total)}}-of-{total}{ending}" in present else 1
        wanted = [
            f"{stem}-{number:0{len(total)}}-of-{total}{ending}" for number in range(first, int(total) + first)
        ]
        missing += [(shard, example) for shard in wanted if shard not in present]
    return missing


def index_of(name: str) -> Optional[str]:
    """Return the name of the index file that a loader needs to find this shard; None if it needs none.

    Args:
        name: File name of the shard.
    """
    found = _SHARD.fullmatch(name)
    if found and found["name"] in ("model", "pytorch_model") and found["ending"] in (".safetensors", ".bin"):
        return f"{found['name']}{found['ending']}.index.json"
    return None
