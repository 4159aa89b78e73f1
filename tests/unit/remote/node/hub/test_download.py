"""Downloads from the Hub: errors that name the key of the recipe and the next action."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.hub import download

FINAL = Path("/w/models/a--b")


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://hub/api"))


class Info:
    """Answer of the Hub about a repository."""

    sha = "abc"

    def __init__(self, *names: str) -> None:
        self.siblings = [SimpleNamespace(rfilename=name) for name in names]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The Hub's client: what it was asked for, and its answer or error."""
    state: dict[str, Any] = {"info": Info("model.safetensors"), "downloads": []}

    class Api:
        def model_info(self, repo_id: str) -> Any:
            if isinstance(state["info"], Exception):
                raise state["info"]
            return state["info"]

        def dataset_info(self, repo_id: str, revision: str | None) -> Any:
            return self.model_info(repo_id)

        def hf_hub_download(self, repo_id: str, name: str, local_dir: Path, **options: Any) -> str:
            (local_dir / name).write_text("the text")
            return str(local_dir / name)

        def snapshot_download(self, repo_id: str, **options: Any) -> None:
            state["downloads"].append(options)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: os.environ.get("HF_TOKEN"))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return state


def test_a_model_is_downloaded_at_one_commit_in_one_weight_format(
    hub: dict[str, Any], tmp_path: Path
) -> None:
    assert download.download_model("a/b", tmp_path, FINAL) == "abc"
    hub["info"] = Info("pytorch_model.bin")
    download.download_model("a/b", tmp_path, FINAL)
    first, second = hub["downloads"]
    assert first["revision"] == "abc" and first["local_dir"] == tmp_path
    assert "*.bin" in first["ignore_patterns"] and "*.safetensors" not in first["ignore_patterns"]
    assert "*.safetensors" in second["ignore_patterns"] and "*.bin" not in second["ignore_patterns"]


@pytest.mark.parametrize(
    "name",
    [
        "tiktoken.model",
        "vocab.txt",
        "sentencepiece.bpe.model",
        "bpe.codes",
        "spm.model",
        "chat_template.jinja",
    ],
)
def test_every_file_of_a_tokenizer_is_downloaded_whatever_its_name(
    name: str, hub: dict[str, Any], tmp_path: Path
) -> None:
    download.download_model("a/b", tmp_path, FINAL)
    [options] = hub["downloads"]
    assert "allow_patterns" not in options
    assert not [pattern for pattern in options["ignore_patterns"] if fnmatch.fnmatch(name, pattern)]


def test_of_a_data_set_only_the_chosen_files_are_downloaded(hub: dict[str, Any], tmp_path: Path) -> None:
    hub["info"] = Info("README.md", "main/train-[1].parquet", "other/train.parquet")
    given: list[Any] = []

    def choose(names: Sequence[str], readme: str) -> list[str]:
        given.extend([*names, readme])
        return ["main/train-[1].parquet"]

    assert download.download_data("a/b", "v1", choose, tmp_path, FINAL) == "abc"
    assert given == ["README.md", "main/train-[1].parquet", "other/train.parquet", "the text"]
    [options] = hub["downloads"]
    assert (options["repo_type"], options["revision"]) == ("dataset", "abc")
    [pattern] = options["allow_patterns"]
    assert fnmatch.fnmatchcase("main/train-[1].parquet", pattern)


def test_a_revision_that_a_data_set_has_not_is_named(hub: dict[str, Any], tmp_path: Path) -> None:
    hub["info"] = errors.RevisionNotFoundError("x", response=response(404))
    with pytest.raises(JobError, match=r"a/b on the Hub has no revision v1: set data\.revision"):
        download.download_data("a/b", "v1", lambda *_: [], tmp_path, FINAL)


@pytest.mark.parametrize(
    ("error", "kind", "retry", "text"),
    [
        (errors.GatedRepoError("x", response=response(403)), "token_refused", False, "Accept its terms"),
        (
            errors.RepositoryNotFoundError("x", response=response(404)),
            "token_refused",
            False,
            "has no model a/b",
        ),
        (errors.HfHubHTTPError("x", response=response(401)), "token_refused", False, "hub.conn_id"),
        *(
            (errors.HfHubHTTPError("x", response=response(code)), "hub_unavailable", True, f"HTTP {code}")
            for code in (408, 409, 412, 429, 500, 503)
        ),
        *(
            (errors.HfHubHTTPError("too big", response=response(code)), "bad_config", False, "too big")
            for code in (400, 413, 422)
        ),
        (httpx.ConnectError("refused"), "hub_unavailable", True, "cannot be reached from"),
        (errors.OfflineModeIsEnabled("x"), "hub_unavailable", True, "hf download a/b"),
        (PermissionError(13, "Permission denied", "/w/x"), None, False, "cannot write below /w/models"),
    ],
)
def test_an_error_of_the_hub_names_the_key_and_its_class(
    error: Exception, kind: str | None, retry: bool, text: str, hub: dict[str, Any], tmp_path: Path
) -> None:
    hub["info"] = error
    with pytest.raises(JobError) as raised:
        download.download_model("a/b", tmp_path, FINAL)
    assert (raised.value.kind, raised.value.retry) == (kind, retry)
    assert str(raised.value).startswith("base_model: ") and text in str(raised.value)
    assert "hf_secret" not in str(raised.value)


def test_a_malformed_token_is_refused_before_it_is_sent(
    hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\nmore")
    with pytest.raises(JobError, match="has blanks") as raised:
        download.download_model("a/b", tmp_path, FINAL)
    assert "hf_secret" not in str(raised.value) and not hub["downloads"]
