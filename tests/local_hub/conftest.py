"""A real server in a subprocess for each test module, and folders to upload to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UPLOADER = ROOT / "include" / "jobs" / "upload.py"
PART_SIZE = 5_000_000  # small, so that the 12 MB file of the tests travels in three parts


@dataclass(frozen=True)
class Server:
    """A running local_hub and the tokens that it knows."""

    url: str
    root: Path
    writer: str = "hf_aliceWritesHere"
    reader: str = "hf_aliceOnlyReads"
    stranger: str = "hf_bobWritesElsewhere"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """local_hub on a free loopback port; the test fails with its output if it does not start."""
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
    argv = [sys.executable, "-m", "local_hub", "--root", str(root / "data"), "--port", "0"]
    argv += ["--tokens", str(tokens), "--part-size", str(PART_SIZE)]
    with (root / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert "serving" in line, f"local_hub did not start: {line} {(root / 'server.log').read_text()}"
        yield Server(line.split(" at ")[1].split()[0], root / "data")
    finally:
        process.terminate()
        process.wait(timeout=20)
    log_text = (root / "server.log").read_text()
    assert "Traceback" not in log_text, f"the server met an error that it did not expect:\n{log_text}"


@pytest.fixture(autouse=True)
def quiet_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep huggingface_hub away from the user's own token and cache, and on the LFS protocol.

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
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(os.urandom(12_000_000))
    (folder / "nested" / "deeper" / "notes.txt").write_text("nested", encoding="utf-8")
    (folder / "empty.txt").touch()
    (folder / "größe [1] 模型.txt").write_text("ü", encoding="utf-8")
    return folder


@pytest.fixture
def small_model_dir(model_dir: Path) -> Path:
    """The same with little weights, for tests that are not about content."""
    (model_dir / "model.safetensors").write_bytes(os.urandom(2000))
    return model_dir


@pytest.fixture
def run_upload(hub: Server, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run upload.py as a user or a job would; HF_TOKEN is set only where the test passes `token`."""

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
        argv = [python, str(UPLOADER), *map(str, arguments)]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run
