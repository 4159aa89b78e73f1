"""Files of a model folder that are not uploaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.remote.node.hub import upload_filter
from llm_bridge.remote.node.hub.upload_filter import exclusion_by_content, exclusion_by_name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".env", "a secret by its name"),
        ("ID_RSA", "a secret by its name"),
        ("hf_token.txt", "a secret by its name"),
        ("optimizer.pt", "a trainer's state"),
        ("model_world_size_2_rank_0.pt", "a trainer's state"),
        ("train.log", "temporary, or a log"),
        (".hidden", "hidden"),
    ],
)
def test_a_file_is_excluded_by_its_name(name: str, reason: str) -> None:
    assert exclusion_by_name(name, folder=False) == reason


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "special_tokens_map.json",
        "model-00001-of-00002.safetensors",
        ".gitattributes",
    ],
)
def test_a_file_of_a_model_is_uploaded(name: str) -> None:
    assert exclusion_by_name(name, folder=False) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("checkpoint-500", "a trainer's checkpoints"),
        ("global_step_10", "a trainer's checkpoints"),
        ("__pycache__", "a cache or logs"),
    ],
)
def test_patterns_for_folders_do_not_apply_to_files(name: str, reason: str) -> None:
    assert exclusion_by_name(name, folder=True) == reason
    assert exclusion_by_name(name, folder=False) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "holds a private key"),
        ("token: hf_" + "aB3" * 10, "holds a Hugging Face token"),
        ("key = AKIA" + "ABCD" * 4, "holds an API key"),
        ("export WANDB_API_KEY=" + "0123456789abcdef", "holds a key or password"),
        ("machine api.wandb.ai login user password x", "holds a key or password"),
        ("use hf_" + "x" * 30 + " here", None),
        ("HF_TOKEN=your_token_goes_here_please", None),
        ('{"model_type": "llama"}', None),
    ],
)
def test_a_file_is_excluded_by_a_secret_in_it(text: str, reason: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"line\n{text}\n")
    assert exclusion_by_content(tmp_path / "README.md") == reason


def test_a_large_file_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("-----BEGIN PRIVATE KEY-----")
    monkeypatch.setattr(upload_filter, "MAX_TEXT_BYTES", 3)
    assert exclusion_by_content(tmp_path / "file") is None


def test_only_the_header_of_safetensors_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = b"-----BEGIN PRIVATE KEY-----"
    for name, header, data in (("header", secret, b""), ("data", b"{}", secret)):
        content = len(header).to_bytes(8, "little") + header + data
        (tmp_path / f"{name}.safetensors").write_bytes(content + b"0" * 1000)
    monkeypatch.setattr(upload_filter, "MAX_TEXT_BYTES", 100)
    assert exclusion_by_content(tmp_path / "header.safetensors") == "holds a private key"
    assert exclusion_by_content(tmp_path / "data.safetensors") is None
