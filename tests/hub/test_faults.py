"""Uploads to a Hub that refuses, is busy, loses connections or is used by others; and uploads that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.hub import sending, upload, upload_errors
from testing.weights import safetensors
from tests.hub.conftest import Server

WAIT = time.sleep
CALLS = {
    "whoami": ("GET", "/api/whoami-v2"),
    "create": ("POST", "/api/repos/create"),
    "tree": ("GET", "/tree/"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "part": ("PUT", "/part/2"),
    "complete": ("POST", "/complete"),
    "commit": ("POST", "/commit/"),
    "refs": ("GET", "/refs"),
    "tag": ("POST", "/tag/"),
}


@pytest.fixture
def api(hub: Server) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.writer)


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses; the upload creates the repository."""
    return "alice/" + "".join(char if char.isalnum() else "-" for char in request.node.name)[-80:].strip(
        "-"
    ).replace("--", "-").replace("--", "-")


@pytest.fixture(autouse=True)
def no_faults(hub: Server) -> Iterator[None]:
    hub.order()
    yield
    hub.order()


@pytest.fixture
def shards(small_model_dir: Path) -> Path:
    """A model of three shards, each of three parts."""
    (small_model_dir / "model.safetensors").unlink()
    names = {f"tensor{number}": f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    for tensor, name in names.items():
        (small_model_dir / name).write_bytes(safetensors(11_000_000, (tensor,)))
    index = {"weight_map": names}
    (small_model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    return small_model_dir


@pytest.fixture
def one_file(small_model_dir: Path) -> Path:
    """A model whose only large file has three parts."""
    (small_model_dir / "model.safetensors").write_bytes(safetensors(11_000_000))
    return small_model_dir


def write_settings(directory: Path, model: Path, repo: str, **more: Any) -> Path:
    values = {"model_dir": str(model), "repo_id": repo, "tags": ["latest-good"]}
    values["result"] = str(directory / attempt_dir.RESULT)
    (directory / "settings.json").write_text(json.dumps({**values, **more}))
    return directory / "settings.json"


@pytest.fixture
def upload_here(
    hub: Server, tmp_path: Path, repo: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Run the uploader in this process, without the waits between its tries and those of huggingface_hub."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.writer)
    disable_progress_bars()
    monkeypatch.setitem(upload_errors.with_retries.__kwdefaults__, "sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: WAIT(min(seconds, 0.01)))

    def run(model: Path, **more: Any) -> int:
        return upload.main(["--settings", str(write_settings(tmp_path, model, repo, **more))])

    return run


def reason(directory: Path) -> Any:
    return json.loads((directory / attempt_dir.REASON).read_text())


def commits(api: HfApi, repo: str) -> int:
    """Number of commits besides that with which a repository begins."""
    return len(api.list_repo_commits(repo)) - 1


# Each call once, each status at least once: the tables of statuses are in tests/unit.
@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("whoami", 429),
        ("create", 503),
        ("tree", 503),
        ("preupload", 500),
        ("batch", 429),
        ("part", 500),
        ("complete", 503),
        ("commit", 409),
        ("commit", 412),
        ("refs", 503),
        ("tag", 429),
    ],
)
def test_a_hub_that_is_busy_once_ends_no_upload(
    hub: Server, api: HfApi, repo: str, one_file: Path, upload_here: Any, call: str, status: int
) -> None:
    method, path = CALLS[call]
    hub.order({"method": method, "path": path, "status": status, "times": 1})
    assert upload_here(one_file) == 0
    assert hub.requests(method, path)[0]["status"] == status
    assert commits(api, repo) == 1
    assert [tag.name for tag in api.list_repo_refs(repo).tags] == ["latest-good"]


@pytest.mark.parametrize(
    ("call", "status", "code", "kind"),
    [
        ("whoami", 401, 3, "token_refused"),
        ("create", 403, 3, "token_refused"),
        ("tree", 404, 1, None),
        ("preupload", 422, 2, "bad_config"),
        ("batch", 403, 3, "token_refused"),
        ("part", 403, 3, "token_refused"),
        ("commit", 401, 3, "token_refused"),
        ("commit", 404, 1, None),
        ("commit", 413, 2, "bad_config"),
        ("commit", 503, 1, "hub_unavailable"),
        ("tag", 403, 3, "token_refused"),
    ],
)
def test_a_hub_that_refuses_ends_the_upload_with_its_message_and_the_next_action(
    hub: Server,
    one_file: Path,
    upload_here: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    call: str,
    status: int,
    code: int,
    kind: str | None,
) -> None:
    method, path = CALLS[call]
    hub.order({"method": method, "path": path, "status": status})
    assert upload_here(one_file) == code
    error = capfd.readouterr().err
    assert "Traceback" not in error and str(status) in error and hub.url in error
    assert reason(tmp_path).get("kind") == kind and reason(tmp_path)["retry"] == (code == 1)
    assert not (tmp_path / attempt_dir.RESULT).exists()
    assert (len(hub.requests(method, path)) > 1) == (status == 503)


def test_a_hub_that_fails_at_every_block_leaves_lines_about_the_progress(
    hub: Server,
    one_file: Path,
    upload_here: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sending, "INTERVAL_SECONDS", 0.02)
    hub.order({"method": "PUT", "path": "/part/", "status": 500})
    assert upload_here(one_file) == 1
    printed = capfd.readouterr()
    assert (
        "Uploading: 0 of 6 files, " in printed.out and "of 11.0 MB" in printed.out and "MB/s" in printed.out
    )
    assert "Sending model.safetensors: the Hub at" in printed.out and "try 2 of 5" in printed.out
    assert "answered 500" in printed.err


@pytest.mark.parametrize("call", ["part", "commit"])
def test_a_connection_that_is_cut_in_the_middle_of_a_file_ends_no_upload(
    hub: Server, api: HfApi, repo: str, one_file: Path, upload_here: Any, call: str
) -> None:
    method, path = CALLS[call]
    hub.order({"method": method, "path": path, "times": 1, "cut_after": 100})
    assert upload_here(one_file) == 0
    assert hub.requests(method, path)[0]["status"] is None
    assert commits(api, repo) == 1


def test_files_of_others_stay_and_those_of_the_same_name_are_replaced(
    api: HfApi, repo: str, small_model_dir: Path, upload_here: Any, tmp_path: Path
) -> None:
    api.create_repo(repo, private=True)
    for name in ("notes/mine.md", "config.json"):
        api.upload_file(repo_id=repo, path_or_fileobj=b"other", path_in_repo=name)
    assert upload_here(small_model_dir) == 0
    assert {"notes/mine.md", "config.json", "model.safetensors"} <= set(api.list_repo_files(repo))
    [config] = api.get_paths_info(repo, "config.json")
    assert config.size == (small_model_dir / "config.json").stat().st_size  # type: ignore[union-attr]
    assert commits(api, repo) == 3


def test_tags_that_exist_are_moved(api: HfApi, repo: str, small_model_dir: Path, upload_here: Any) -> None:
    assert upload_here(small_model_dir) == 0
    (small_model_dir / "empty.txt").write_text("changed")
    assert upload_here(small_model_dir) == 0
    [tag] = api.list_repo_refs(repo).tags
    assert (tag.name, tag.target_commit) == ("latest-good", api.model_info(repo).sha)


@pytest.fixture
def start(hub: Server, uploader: list[str], tmp_path: Path) -> Callable[[Path], subprocess.Popen[str]]:
    """Start the uploader as a process of its own, to kill it."""

    def run(settings: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.writer}
        return subprocess.Popen(
            [sys.executable, *uploader, "--settings", str(settings)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


@pytest.mark.parametrize("same", [True, False])
def test_two_uploads_at_once_lose_no_file_and_make_no_commit_twice(
    hub: Server,
    api: HfApi,
    repo: str,
    small_model_dir: Path,
    start: Any,
    upload_here: Any,
    tmp_path: Path,
    same: bool,
) -> None:
    # The first waits at its commit until the second has made one.
    hub.order({"method": "POST", "path": "/commit/", "times": 1, "delay": 300})
    other = tmp_path / "other"
    other.mkdir()
    first = start(write_settings(other, small_model_dir, repo))
    wait_for(lambda: hub.requests("POST", "/commit/"), first)
    if not same:
        (small_model_dir / "more.txt").write_text("more")
    assert upload_here(small_model_dir) == 0
    hub.order()
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    assert "Committing: the Hub at" in output and "answered 412" in output
    assert commits(api, repo) == 1
    assert ("more.txt" in api.list_repo_files(repo)) != same
    results = [json.loads((place / attempt_dir.RESULT).read_text()) for place in (tmp_path, other)]
    assert [result["new_commit"] for result in results] == [True, False]
    assert results[0]["revision"] == results[1]["revision"] == api.model_info(repo).sha


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait until an upload has come to a place."""
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it did not happen"
        WAIT(0.05)


SECOND_SHARD = {"method": "PUT", "path": "/part/2", "after": 1}


@pytest.mark.parametrize(
    ("moment", "sent_again"),
    [
        # The call at which the upload is killed, and the parts that the next upload sends.
        ({"method": "POST", "path": "/api/repos/create"}, 9),
        ({"method": "PUT", "path": "/part/2"}, 9),
        (SECOND_SHARD, 6),
        ({"method": "POST", "path": "/commit/"}, 0),
        ({"method": "POST", "path": "/tag/"}, 0),
    ],
)
def test_an_upload_that_was_killed_goes_on_with_the_next_file(
    hub: Server,
    api: HfApi,
    repo: str,
    shards: Path,
    start: Any,
    upload_here: Any,
    tmp_path: Path,
    moment: dict[str, Any],
    sent_again: int,
) -> None:
    hub.order({**moment, "delay": 300})
    process = start(write_settings(tmp_path, shards, repo))
    matching = moment.get("after", 0) + 1
    wait_for(lambda: len(hub.requests(moment["method"], moment["path"])) >= matching, process)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / attempt_dir.RESULT).exists()
    hub.order()
    assert upload_here(shards) == 0
    assert len(hub.requests("PUT", "/part/")) == sent_again
    check_result(api, repo, tmp_path)
    hub.order()
    assert upload_here(shards) == 0
    assert not hub.requests("PUT", "/_lfs/") and not hub.requests("POST", "/commit/")
    assert commits(api, repo) == 1


def check_result(api: HfApi, repo: str, directory: Path) -> None:
    """Check that the result names the only commit, its tag, and all files with their sizes and hashes."""
    result = json.loads((directory / attempt_dir.RESULT).read_text())
    assert commits(api, repo) == 1
    assert result["revision"] == api.model_info(repo).sha
    assert [tag.target_commit for tag in api.list_repo_refs(repo).tags] == [result["revision"]]
    listed = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}
    for file in result["files"]:
        entry: Any = listed[file["path"]]
        assert entry.size == file["size"]
        assert entry.lfs is None or entry.lfs.sha256 == file["sha256"]
    assert sum(file["path"].endswith(".safetensors") for file in result["files"]) == 3


def test_a_commit_whose_answer_was_lost_is_not_made_again(
    hub: Server, api: HfApi, repo: str, shards: Path, start: Any, upload_here: Any, tmp_path: Path
) -> None:
    hub.order({"method": "POST", "path": "/commit/", "answer_delay": 300})
    process = start(write_settings(tmp_path, shards, repo))
    wait_for(lambda: any(entry["status"] for entry in hub.requests("POST", "/commit/")), process)
    process.kill()
    process.communicate(timeout=60)
    assert upload_here(shards) == 0
    check_result(api, repo, tmp_path)
