"""A real server in a subprocess for each test module, and folders to upload to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_bridge.remote import attempt_dir, node_archive
from testing.paths import ROOT
from testing.weights import safetensors

PART_SIZE = 5_000_000  # small, so that the 12 MB file of the tests travels in three parts
# The smallest tokenizer that transformers loads.
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}


@dataclass(frozen=True)
class Server:
    """A running test Hub and the tokens that it knows."""

    url: str
    root: Path
    writer: str = "hf_aliceWritesHere"
    reader: str = "hf_aliceOnlyReads"
    stranger: str = "hf_bobWritesElsewhere"

    def order(self, *faults: dict[str, Any]) -> None:
        """Replace the faults (testing/local_hub/faults.py), and forget the requests so far."""
        httpx.put(f"{self.url}/_test/faults", json=list(faults)).raise_for_status()

    def requests(self, method: str, path: str) -> list[dict[str, Any]]:
        """Return the requests of a method whose path contains a match of a regular expression."""
        found = httpx.get(f"{self.url}/_test/requests").raise_for_status().json()
        return [entry for entry in found if entry["method"] == method and re.search(path, entry["path"])]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The test Hub on a free loopback port; the test fails with its output if it does not start."""
    root = tmp_path_factory.mktemp("hub")
    tokens = root / "accounts.json"
    tokens.write_text(
        json.dumps(
            {
                Server.writer: {"user": "alice", "role": "write", "orgs": ["acme"]},
                Server.reader: {"user": "alice", "role": "read", "orgs": ["acme"]},
                Server.stranger: {"user": "bob", "role": "write", "orgs": []},
            }
        ),
        encoding="utf-8",
    )
    argv = [sys.executable, "-m", "testing.local_hub", "--root", str(root / "data"), "--port", "0"]
    argv += ["--tokens", str(tokens), "--part-size", str(PART_SIZE), "--faults"]
    with (root / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert "serving" in line, f"the test Hub did not start: {line} {(root / 'server.log').read_text()}"
        yield Server(line.split(" at ")[1].split()[0], root / "data")
    finally:
        process.terminate()
        process.wait(timeout=20)
    log_text = (root / "server.log").read_text()
    assert "Traceback" not in log_text, f"the server met an error that it did not expect:\n{log_text}"


@pytest.fixture(autouse=True)
def quiet_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make huggingface_hub ignore the user's token and cache, and use the LFS protocol.

    It reads its environment at import, so tests that call it in this process patch its constants.
    """
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A folder that looks like a saved model, with each kind of file that the protocol treats differently."""
    folder = tmp_path / "model"
    (folder / "nested" / "deeper").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(safetensors(12_000_000))
    (folder / "nested" / "deeper" / "notes.txt").write_text("nested", encoding="utf-8")
    (folder / "empty.txt").touch()
    (folder / "größe [1] 模型.txt").write_text("ü", encoding="utf-8")
    return folder


@pytest.fixture
def small_model_dir(model_dir: Path) -> Path:
    """The same with little weights, for tests that are not about content."""
    (model_dir / "model.safetensors").write_bytes(safetensors(2000))
    return model_dir


@pytest.fixture(scope="session")
def uploader(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The uploader's command line without its Python, as a job or an Airflow worker runs it."""
    archive = tmp_path_factory.mktemp("archive") / attempt_dir.NODE_ARCHIVE
    archive.write_bytes(node_archive.build())
    return [str(archive), "upload"]


@pytest.fixture
def run_upload(
    hub: Server, uploader: list[str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the uploader as a user or a job would; HF_TOKEN is set only where the test passes `token`."""

    def run(*arguments: object, token: str | None = None, python: str = sys.executable, **more: str):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "uploader_home"),
            **more,
        }
        # The uploader itself must notice that this endpoint needs LFS.
        environment.pop("HF_HUB_DISABLE_XET", None)
        if token:
            environment["HF_TOKEN"] = token
        argv = [python, *uploader, *map(str, arguments)]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run
