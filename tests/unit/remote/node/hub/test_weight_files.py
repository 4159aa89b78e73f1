"""Weight files by their headers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.hub import weight_files
from llm_bridge.remote.node.hub.weight_files import Corrupt
from testing.weights import safetensors
from tests.unit.remote.node.support import torch_file


def write(tmp_path: Path, header: dict[str, Any], data: bytes) -> Path:
    raw = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return file


def tensor(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **changes}


def test_the_tensors_of_a_complete_file_are_named(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": tensor(8, 12), "a": tensor(0, 8), "empty": tensor(8, 8)}
    assert weight_files.safetensors_names(write(tmp_path, header, b"x" * 12)) == {"a", "b", "empty"}
    (tmp_path / "made").write_bytes(safetensors(2000))
    assert weight_files.safetensors_names(tmp_path / "made")


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        ({"a": tensor(0, 8)}, b"x" * 7, "is cut off"),
        ({"a": tensor(0, 8)}, b"x" * 9, "is corrupt: it has"),
        ({"__metadata__": {}}, b"", "holds no tensor"),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12, "'b' is at bytes 4 to 12"),
        ({"a": tensor(0, 8, shape=[3])}, b"x" * 8, "shape and bytes of 'a' differ"),
        ({"a": {"dtype": "F32"}}, b"", "the entry of 'a'"),
        ({"a": tensor(0, 8, shape=[-2])}, b"x" * 8, "the entry of 'a'"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_corrupt(
    header: dict[str, Any], data: bytes, text: str, tmp_path: Path
) -> None:
    with pytest.raises(Corrupt, match=text):
        weight_files.safetensors_names(write(tmp_path, header, data))


@pytest.mark.parametrize("data", [b"", b"\x01\x02", b"\xff" * 8 + b"{}", weight_files.LFS_POINTER + b" oid"])
def test_a_file_without_a_header_is_corrupt(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(Corrupt, match=r"no whole safetensors header|git lfs pull"):
        weight_files.safetensors_names(tmp_path / "file")


def test_files_of_torch_are_archives_or_pickles(tmp_path: Path) -> None:
    archive, old, text = tmp_path / "a.bin", tmp_path / "old.bin", tmp_path / "x.bin"
    torch_file(archive)
    old.write_bytes(pickle.dumps({}))
    text.write_text("GGUF")
    weight_files.check_torch_file(old, must_be_torch=True)
    weight_files.check_torch_file(text, must_be_torch=False)
    with pytest.raises(Corrupt, match="neither a zip archive nor a pickle"):
        weight_files.check_torch_file(text, must_be_torch=True)
    weight_files.check_torch_file(archive, must_be_torch=False)
    with pytest.raises(Corrupt, match=r"has no data\.pkl"):
        weight_files.check_torch_file(archive, must_be_torch=True)
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(Corrupt, match="cut off"):
        weight_files.check_torch_file(archive, must_be_torch=False)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["model.safetensors"], []),
        (["m-00001-of-00002.bin", "m-00002-of-00002.bin"], []),
        (["m-00002-of-00003.bin"], ["m-00001-of-00003.bin", "m-00003-of-00003.bin"]),
        (["m-00000-of-00002.bin", "m-00001-of-00002.bin"], []),
        (["m-00000-of-00002.bin"], ["m-00001-of-00002.bin"]),
    ],
)
def test_missing_shards_are_listed(names: list[str], missing: list[str]) -> None:
    assert [shard for shard, _ in weight_files.missing_shards(names)] == missing
    assert all(example == names[0] for _, example in weight_files.missing_shards(names))


def test_only_a_shard_with_a_standard_name_needs_an_index() -> None:
    index = weight_files.index_of("model-00001-of-00002.safetensors")
    assert index == "model.safetensors.index.json"
    assert weight_files.index_of("pytorch_model-00001-of-00002.bin") == "pytorch_model.bin.index.json"
    assert weight_files.index_of("model.safetensors") is None
    assert weight_files.index_of("other-00001-of-00002.bin") is None


def test_only_a_json_object_is_accepted() -> None:
    assert weight_files.json_object(b'{"a": 1}') == {"a": 1}
    for raw in (b"{", b"\xff", b"[1]"):
        with pytest.raises(Corrupt, match=r"^x.json "):
            weight_files.json_object(raw, "x.json")
