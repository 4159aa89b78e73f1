"""Comparison of two model folders, tensor by tensor.

Requires torch and safetensors. One tensor of each folder is in memory at a time; the comparison ends at the first
difference.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional


class Tensor(NamedTuple):
    """A tensor on disk.

    Attributes:
        shape: Size of each dimension.
        read: Function that reads the tensor into memory.
    """

    shape: tuple[int, ...]
    read: Callable[[], Any]


def weight_files(model: Path) -> list[Path]:
    """Return the files that transformers would load: safetensors before torch files, a single file before an index.

    Args:
        model: Path of the model folder.

    Raises:
        OSError: No weights were found, or the index cannot be read.
        ValueError: The index is not JSON.
        KeyError: The index has no ``weight_map``.
    """
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (model / single).is_file():
            return [model / single]
        if (model / index).is_file():
            shards = json.loads((model / index).read_text(encoding="utf-8"))["weight_map"].values()
            return [model / name for name in sorted(set(shards))]
    raise FileNotFoundError(2, "no model.safetensors, pytorch_model.bin or index of either", str(model))


def tensors(model: Path) -> dict[str, Tensor]:
    """Return the floating-point tensors of a model folder by name; buffers of other types are not trained.

    Args:
        model: Path of the model folder.
    """
    return {name: tensor for file in weight_files(model) for name, tensor in _in_file(file)}


def _in_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        opened = safe_open(str(file), framework="pt")
        for name in opened.keys():  # noqa: SIM118 (opened is not a dict)
            part = opened.get_slice(name)
            if "F" in part.get_dtype():  # F32, BF16, F8_E4M3
                yield name, Tensor(tuple(part.get_shape()), partial(opened.get_tensor, name))
        return
    import torch

    # Files written before torch 1.6 are not zip archives and cannot be mapped into memory.
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    for name, tensor in loaded.items():
        if torch.is_tensor(tensor) and tensor.is_floating_point():
            yield name, Tensor(tuple(tensor.shape), partial(_identity, tensor))


def _identity(tensor: Any) -> Any:
    return tensor


def same_as_base(base: Path, trained: Path) -> Optional[list[str]]:
    """Return the tensors that are equal in both models; None if training changed a tensor.

    Before the comparison the base's numbers are rounded as saving rounds them (float32, then the saved type). Tensors
    are matched by name. A tensor that the base has under another name, or once for two names (tied weights), is matched
    by content. A tensor without a counterpart of its shape is skipped.

    Args:
        base: Folder of the model that training started from.
        trained: Folder of the model that training saved.

    Returns:
        Names of the compared tensors, if all of them equal the base's (an empty list: none could be compared); None
        after the first difference.
    """
    before, after = tensors(base), tensors(trained)
    equal = []
    for name, tensor in after.items():
        if name in before:
            candidates = [before[name]] if before[name].shape == tensor.shape else []
        else:
            candidates = [other for other in before.values() if other.shape == tensor.shape]
        if not candidates:
            continue
        if not any(_equal(candidate, tensor) for candidate in candidates):
            return None
        equal.append(name)
    return equal


def _equal(before: Tensor, after: Tensor) -> bool:
    import torch

    new = after.read()
    return bool(torch.equal(before.read().float().to(new.dtype), new))
