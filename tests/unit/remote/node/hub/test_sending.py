"""Sending of large files, and the lines about the progress; tests/hub sends to a server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.remote.node.hub import sending
from tests.unit.remote.node.support import local_file


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two shards and a small file."""
    monkeypatch.setattr(sending, "LARGE_BYTES", 100_000)
    names = {"config.json": 2, "model-1.safetensors": 400_000, "model-2.safetensors": 600_000}
    for name, size in names.items():
        (tmp_path / name).write_bytes(b"x" * size)
    return [local_file(tmp_path / name) for name in names]


def direct(_: str, call: Callable[[], Any]) -> Any:
    return call()


def test_large_files_are_sent_each_on_its_own_with_a_line_for_each(
    files: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[list[Any]] = []
    api = SimpleNamespace(preupload_lfs_files=lambda _, operations, **__: sent.append(operations))
    with sending.progress_lines("Uploading", files) as progress:
        sending.send_large(api, "me/m", files, progress, direct, revision="main")
    assert len(sent) == 2 and all([file.operation] in sent for file in files[1:])
    first, one, two = capsys.readouterr().out.splitlines()
    assert first == "Uploading 3 files (1.0 MB)"
    assert {line.split(":")[0] for line in (one, two)} == {
        "Sent model-1.safetensors",
        "Sent model-2.safetensors",
    }
    assert re.search(
        r"2 of 3 files, 1\.0 of 1\.0 MB, [\d.]+ MB/s, \d+ s so far$", f"{one}\n{two}", re.MULTILINE
    )


def test_each_file_gets_its_own_tries(files: list[Any]) -> None:
    names: list[str] = []

    def step(name: str, call: Callable[[], Any]) -> Any:
        names.append(name)
        return call()

    api = SimpleNamespace(preupload_lfs_files=lambda *_, **__: None)
    sending.send_large(api, "me/m", files, sending.Progress(files), step, revision="main")
    assert sorted(names) == ["Sending model-1.safetensors", "Sending model-2.safetensors"]


def test_a_long_file_has_lines_with_bytes_and_rate_while_it_is_sent(
    files: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sending, "INTERVAL_SECONDS", 0.05)
    read = [1000]
    monkeypatch.setattr(sending, "bytes_read", lambda: read[0])
    with sending.progress_lines("Uploading", files) as progress, progress.file(files[2].size):
        read[0] += 300_000
        time.sleep(0.3)
        read[0] += 9_000_000  # sent again after an error: no more than the file's own bytes count
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert "Uploading: 0 of 3 files, 0.3 of 1.0 MB, " in lines[1]
    assert "0.3 of 1.0 MB, 0.0 MB/s" in " ".join(lines), "a transfer that stands still shows it"
    assert "0 of 3 files, 0.6 of 1.0 MB" in lines[-1]


def test_bytes_that_are_read_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1_000_000)
    before = sending.bytes_read()
    (tmp_path / "file").read_bytes()
    assert 1_000_000 <= sending.bytes_read() - before < 2_000_000
    monkeypatch.setattr(sending, "IO_COUNTS", tmp_path / "absent")
    assert sending.bytes_read() == 0


def test_only_files_that_the_hub_lacks_are_changes(files: list[Any]) -> None:
    same, other, _ = files
    tree = [
        SimpleNamespace(path=file.path, size=file.size, blob_id="", lfs=SimpleNamespace(sha256=sha256))
        for file, sha256 in ((same, same.sha256), (other, "0" * 64))
    ]
    api = SimpleNamespace(
        model_info=lambda *_, **__: SimpleNamespace(sha="abc"), list_repo_tree=lambda *_, **__: tree
    )
    assert sending.changes(api, "me/m", "main", files) == ("abc", files[1:])


def test_an_open_pull_request_is_found_by_its_title_and_content(files: list[Any]) -> None:
    def tree(_: str, revision: str, **__: Any) -> list[Any]:
        shown = files if revision == "commit of refs/pr/2" else files[:1]
        return [
            SimpleNamespace(
                path=file.path, size=file.size, lfs=SimpleNamespace(sha256=file.sha256), blob_id=""
            )
            for file in shown
        ]

    pulls = [SimpleNamespace(num=num, title=title, url=f"page {num}") for num, title in enumerate("aabb")]
    api = SimpleNamespace(
        get_repo_discussions=lambda *_, **__: pulls,
        model_info=lambda _, revision: SimpleNamespace(sha=f"commit of {revision}"),
        list_repo_tree=tree,
    )
    assert sending.pull_request_with(api, "me/m", "b", files) == ("commit of refs/pr/2", "page 2")
    assert sending.pull_request_with(api, "me/m", "a", files) is None
