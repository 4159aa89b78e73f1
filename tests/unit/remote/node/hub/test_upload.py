"""The uploader's own check of what arrived; tests/hub runs it against a server."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.hub import upload
from tests.unit.remote.node.support import local_file


def test_a_file_that_arrived_different_is_an_error_that_names_it(tmp_path):
    files = []
    for name in ("same.bin", "other.bin", "shorter.bin", "absent.bin"):
        (tmp_path / name).write_bytes(name.encode())
        files.append(local_file(tmp_path / name))
    tree = [
        SimpleNamespace(
            path=file.path,
            size=3 if file.path == "shorter.bin" else file.size,
            blob_id="",
            lfs=SimpleNamespace(sha256="0" * 64 if file.path == "other.bin" else file.sha256),
        )
        for file in files[:3]
    ]
    hub = SimpleNamespace(list_repo_tree=lambda *_, **__: tree)
    with pytest.raises(upload.UploadError) as raised:
        upload.verify(hub, "alice/model", "abc", files)
    assert raised.value.exit_code == 1
    for problem in ("other.bin has other content", "shorter.bin has 3 bytes", "absent.bin is not on the Hub"):
        assert problem in str(raised.value)
    assert "same.bin" not in str(raised.value)


@pytest.mark.parametrize(
    "repo_id",
    [
        "me/my--model",
        "me/model-",
        "me/a..b",
        "me/model.git",
        "model",
        "a/b/c",
        "me/" + "m" * 200,
        "m" * 200 + "/me",
    ],
)
def test_the_uploader_asks_huggingface_hub_whether_a_repository_id_is_valid(repo_id):
    with pytest.raises(upload.BadInput, match="OWNER/NAME"):
        upload.check_repo_id(repo_id)


@pytest.mark.parametrize(
    ("status", "exit_code", "kind"),
    [
        *((code, 2, "bad_config") for code in (400, 413, 422)),
        *((code, 3, "token_refused") for code in (401, 403)),
        *((code, 1, "hub_unavailable") for code in (408, 409, 412, 429, 500, 502, 503, 504)),
        (404, 1, None),
    ],
)
def test_only_an_answer_that_no_retry_changes_is_final_and_has_the_hubs_message(status, exit_code, kind):
    error = RuntimeError("Your file is too big")
    error.response = SimpleNamespace(status_code=status)
    known = upload.as_upload_error(error, "http://hub")
    assert (known.exit_code, known.kind) == (exit_code, kind)
    assert "Your file is too big" in str(known) and str(status) in str(known)


def check_loads(folder: Path) -> str:
    """Stand-in for that of the package, which only the folder ``good`` passes; it is called in another process."""
    if folder.name != "good":
        raise JobError(f"transformers cannot load the tokenizer of {folder}", kind="bad_config")
    return "Loaded"


def test_a_model_that_does_not_load_is_wrong_input(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upload, "check_loads", check_loads)
    upload.load(Path("/good"))
    assert "Loaded" in capfd.readouterr().out
    with pytest.raises(upload.BadInput, match="cannot load the tokenizer of /other\nNothing was uploaded"):
        upload.load(Path("/other"))


def killed(_: Path) -> str:
    os._exit(9)


def test_a_process_that_is_killed_while_it_loads_the_model_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload, "check_loads", killed)
    with pytest.raises(upload.UploadError, match=r"raise upload\.mem") as error:
        upload.load(Path("/good"))
    assert error.value.kind == "host_oom"


def test_a_pull_request_is_for_main_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    argv = ["--input_tokenizer_and_model_dir", str(tmp_path), "--repo_id", "me/model"]
    assert upload.main([*argv, "--pull_request", "--revision", "other"]) == 2
    assert "a pull request is for the branch main, not 'other'" in capfd.readouterr().err
