"""Weight files in the safetensors format, made without the package."""

from __future__ import annotations

import json
import os


def safetensors(size: int = 400, names: tuple[str, ...] = ("model.embed_tokens.weight",)) -> bytes:
    """Return a complete file.

    Args:
        size: Size of the file in bytes.
        names: Names of its tensors; the first has all of the content.
    """
    header = 100 * len(names)
    content = size - 8 - header
    entries = {name: {"dtype": "U8", "shape": [0], "data_offsets": [content, content]} for name in names}
    entries[names[0]] = {"dtype": "U8", "shape": [content], "data_offsets": [0, content]}
    return header.to_bytes(8, "little") + json.dumps(entries).ljust(header).encode() + os.urandom(content)
