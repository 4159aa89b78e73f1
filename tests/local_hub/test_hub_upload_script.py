"""include/jobs/upload.py, run as a user or a job would run it, against a real server."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from huggingface_hub import HfApi, snapshot_download


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.writer)


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses; the script creates the repository."""
    return "alice/" + request.node.originalname.removeprefix("test_")[:80].strip("_")


def by_hand(model_dir: Path, repo: str) -> list[object]:
    return ["--input_tokenizer_and_model_dir", model_dir, "--repo_id", repo]


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_by_hand_it_uploads_verifies_and_reports(hub, api, run_upload, model_dir, repo, tmp_path):
    result_file = tmp_path / "new_folder" / "result.json"
    done = run_upload(*by_hand(model_dir, repo), "--result", result_file, token=hub.writer)
    assert done.returncode == 0, output_of(done)

    sha = api.model_info(repo).sha
    assert f"Uploaded 6 files (12.0 MB) to {hub.url}/{repo} at {sha}" in done.stdout
    assert done.stdout.count("  verified ") == 6
    assert api.model_info(repo).private, "private is the default"
    result = json.loads(result_file.read_text())
    assert (result["repo_id"], result["revision"], result["url"]) == (repo, sha, f"{hub.url}/{repo}")
    assert result["skipped"] == [] and result["new_commit"] is True
    for file in result["files"]:
        data = (model_dir / file["path"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    back = Path(snapshot_download(repo, endpoint=hub.url, token=hub.writer, cache_dir=tmp_path / "cache"))
    for file in result["files"]:
        assert (back / file["path"]).read_bytes() == (model_dir / file["path"]).read_bytes()
    assert hub.writer not in output_of(done)


def test_a_second_run_makes_no_commit_and_says_so(hub, api, run_upload, small_model_dir, repo, tmp_path):
    result_file = tmp_path / "result.json"
    arguments = [*by_hand(small_model_dir, repo), "--result", result_file]
    first = run_upload(*arguments, token=hub.writer)
    before = json.loads(result_file.read_text())
    second = run_upload(*arguments, token=hub.writer)
    after = json.loads(result_file.read_text())
    assert (first.returncode, second.returncode) == (0, 0), output_of(second)
    assert "Nothing changed" in second.stdout and "no new commit" in second.stdout
    assert after == {**before, "new_commit": False}
    assert len(api.list_repo_commits(repo)) == 2


def test_a_changed_file_is_uploaded_and_nothing_on_the_hub_is_deleted(
    hub, api, run_upload, small_model_dir, repo
):
    assert run_upload(*by_hand(small_model_dir, repo), token=hub.writer).returncode == 0
    api.upload_file(repo_id=repo, path_or_fileobj=b"# card", path_in_repo="README.md")
    (small_model_dir / "config.json").write_text('{"model_type": "llama"}')
    (small_model_dir / "empty.txt").unlink()
    assert run_upload(*by_hand(small_model_dir, repo), token=hub.writer).returncode == 0
    assert {"README.md", "empty.txt", "config.json"} <= set(api.list_repo_files(repo))
    [config] = api.get_paths_info(repo, "config.json")
    assert config.size == len('{"model_type": "llama"}')


def test_temporary_files_are_skipped_in_every_folder(hub, api, run_upload, small_model_dir, repo, tmp_path):
    (small_model_dir / "model.safetensors.tmp").write_bytes(b"half a file")
    (small_model_dir / "nested" / "state.tmp").write_bytes(b"half a file")
    result_file = tmp_path / "result.json"
    done = run_upload(*by_hand(small_model_dir, repo), "--result", result_file, token=hub.writer)
    assert done.returncode == 0, output_of(done)
    assert json.loads(result_file.read_text())["skipped"] == ["model.safetensors.tmp", "nested/state.tmp"]
    assert not [name for name in api.list_repo_files(repo) if name.endswith(".tmp")]


def test_hf_token_still_works_but_warns_that_everybody_can_read_it(hub, run_upload, small_model_dir, repo):
    done = run_upload(*by_hand(small_model_dir, repo), "--hf_token", hub.writer)
    assert done.returncode == 0, output_of(done)
    assert "WARNING: --hf_token" in done.stderr and "every user of this machine" in done.stderr
    assert hub.writer not in output_of(done)


def test_settings_replace_the_arguments_and_the_token_file_is_removed(
    hub, api, run_upload, small_model_dir, repo, tmp_path
):
    token_file, settings = tmp_path / "token", tmp_path / "settings.json"
    token_file.write_text(hub.writer + "\n")
    values = {
        "model_dir": str(small_model_dir),
        "repo_id": repo,
        "private": False,
        "revision": "trained/run-1",
        "token_file": str(token_file),
        "delete_token_file": True,
        "result": str(tmp_path / "result.json"),
        "endpoint": hub.url,
        "commit_message": "run 1",
    }
    settings.write_text(json.dumps(values))
    done = run_upload("--settings", settings, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, output_of(done)
    assert not token_file.exists()
    assert not api.model_info(repo).private
    assert api.list_repo_commits(repo, revision="trained/run-1")[0].title == "run 1"
    assert "config.json" not in api.list_repo_files(repo, revision="main")
    assert json.loads((tmp_path / "result.json").read_text())["revision"] != api.model_info(repo).sha
    assert hub.writer not in output_of(done)


def test_the_token_file_is_removed_also_when_the_upload_fails(run_upload, hub, tmp_path):
    token_file, settings = tmp_path / "token", tmp_path / "settings.json"
    token_file.write_text(hub.writer)
    values = {
        "model_dir": "/nowhere",
        "repo_id": "wrong",
        "token_file": str(token_file),
        "delete_token_file": True,
    }
    settings.write_text(json.dumps(values))
    assert run_upload("--settings", settings).returncode == 2
    assert not token_file.exists()


def test_a_refused_token_ends_with_3_and_says_where_it_came_from(run_upload, small_model_dir, repo, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("hf_notKnownHere")
    from_environment = run_upload(*by_hand(small_model_dir, repo), token="hf_notKnownHere")
    from_file = run_upload(*by_hand(small_model_dir, repo), "--token_file", token_file)
    for done, source in ((from_environment, "environment variable HF_TOKEN"), (from_file, str(token_file))):
        assert done.returncode == 3
        assert "refused the token" in done.stderr and source in done.stderr
        assert "https://huggingface.co/settings/tokens" in done.stderr
        assert "hf_notKnownHere" not in output_of(done) and "Traceback" not in done.stderr


def test_a_token_that_may_not_write_ends_with_3_and_says_so(hub, run_upload, small_model_dir, repo):
    read_only = run_upload(*by_hand(small_model_dir, repo), token=hub.reader)
    foreign = run_upload(*by_hand(small_model_dir, repo), token=hub.stranger)
    assert (read_only.returncode, foreign.returncode) == (3, 3)
    assert "read-only" in read_only.stderr
    assert "may not write in the namespace 'alice'" in foreign.stderr
    assert "Traceback" not in foreign.stderr


@pytest.mark.parametrize("bad_token", ["", "two words", "hf_ünïcode", "hf_line\nbreak"])
def test_a_token_that_cannot_be_one_is_refused_without_showing_it(
    run_upload, small_model_dir, tmp_path, bad_token
):
    token_file = tmp_path / "token"
    token_file.write_text(bad_token, encoding="utf-8")
    done = run_upload(*by_hand(small_model_dir, "alice/model"), "--token_file", token_file)
    assert done.returncode == 3
    assert "holds no token" in done.stderr
    assert not bad_token or bad_token not in output_of(done)


def test_no_token_at_all_ends_with_3_and_names_the_ways_to_give_one(run_upload, small_model_dir):
    done = run_upload(*by_hand(small_model_dir, "alice/model"))
    assert done.returncode == 3
    assert all(way in done.stderr for way in ("--token_file", "HF_TOKEN", "hf auth login"))


def test_an_incomplete_model_ends_with_2_and_names_what_is_missing(run_upload, hub, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "training_args.bin").write_bytes(b"not weights")
    done = run_upload(*by_hand(folder, "alice/model"), token=hub.writer)
    assert done.returncode == 2
    for missing in ("config.json is missing", "weights are missing", "tokenizer files are missing"):
        assert missing in done.stderr


def test_a_missing_shard_is_named(run_upload, hub, small_model_dir):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (small_model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    done = run_upload(*by_hand(small_model_dir, "alice/model"), token=hub.writer)
    assert done.returncode == 2
    assert "model-00002-of-00002.safetensors is missing" in done.stderr


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "alice/..", "alice/a--b", "alice/model.git", "-a/b"])
def test_a_malformed_repo_id_ends_with_2(run_upload, hub, small_model_dir, repo_id):
    done = run_upload(
        f"--repo_id={repo_id}", "--input_tokenizer_and_model_dir", small_model_dir, token=hub.writer
    )
    assert done.returncode == 2
    assert "OWNER/NAME" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "cannot read the settings file"),
        ('{"model_dir": "x"}', "'repo_id' is missing"),
        ('{"model_dir": "x", "repo_id": "a/b", "privat": true}', "unknown key 'privat'"),
        ('{"model_dir": "x", "repo_id": "a/b", "private": "yes"}', "'private' must be a bool"),
    ],
)
def test_wrong_settings_end_with_2_and_name_the_key(run_upload, tmp_path, settings, message):
    file = tmp_path / "settings.json"
    file.write_text(settings)
    done = run_upload("--settings", file)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_private_upload_never_goes_to_a_public_repository(hub, api, run_upload, small_model_dir, repo):
    api.create_repo(repo, private=False)
    refused = run_upload(*by_hand(small_model_dir, repo), "--private", token=hub.writer)
    assert refused.returncode == 2
    assert "exists and is public" in refused.stderr
    assert api.list_repo_files(repo) == [".gitattributes"]
    warned = run_upload(*by_hand(small_model_dir, repo), token=hub.writer)
    assert warned.returncode == 0
    assert "WARNING" in warned.stderr and "is public" in warned.stderr


def test_a_hub_that_cannot_be_reached_ends_with_1_and_says_what_to_check(run_upload, small_model_dir, hub):
    arguments = [*by_hand(small_model_dir, "alice/model"), "--endpoint", "http://127.0.0.1:9"]
    done = run_upload(*arguments, token=hub.writer)
    assert done.returncode == 1
    assert "cannot reach the Hub at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr and hub.writer not in output_of(done)


def test_help_says_that_private_is_the_default_now():
    script = Path(__file__).resolve().parents[2] / "include" / "jobs" / "upload.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "older versions of this script created public ones" in " ".join(done.stdout.split())


@pytest.fixture
def upload(monkeypatch) -> ModuleType:
    """The script as a module, for what cannot be provoked from outside."""
    script = Path(__file__).resolve().parents[2] / "include" / "jobs" / "upload.py"
    monkeypatch.syspath_prepend(str(script.parent))  # the files beside it
    spec = importlib.util.spec_from_file_location("upload_script", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "upload_script", module)  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_an_unforeseen_error_that_holds_the_token_is_printed_without_it(
    upload, small_model_dir, monkeypatch, capfd
):
    def fail(*_: object) -> None:
        raise ValueError("Illegal header value b'Bearer hf_verySecret'")

    monkeypatch.setattr(upload, "run", fail)
    monkeypatch.setenv("HF_TOKEN", "hf_verySecret")
    code = upload.main(["--input_tokenizer_and_model_dir", str(small_model_dir), "--repo_id", "alice/model"])
    error = capfd.readouterr().err
    assert code == 1
    assert "Illegal header value b'Bearer [token]'" in error and "hf_verySecret" not in error


def test_a_file_that_arrived_different_is_an_error_that_names_it(upload, tmp_path):
    files = []
    for name in ("same.bin", "other.bin", "shorter.bin", "absent.bin"):
        (tmp_path / name).write_bytes(name.encode())
        files.append(upload.hash_file(tmp_path, tmp_path / name))
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


def test_the_cluster_environments_older_client_uploads_too(hub, api, run_upload, model_dir, repo, tmp_path):
    home = Path(os.environ.get("LLM_BRIDGE_HOME", "/var/tmp/llm-bridge"))
    python = home / "cluster-env" / "bin" / "python"
    assert python.exists(), f"{python} is missing: create the cluster environment or set LLM_BRIDGE_HOME"
    version = subprocess.run(
        [python, "-c", "import huggingface_hub; print(huggingface_hub.__version__)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert version.startswith("1."), f"{python} has huggingface_hub {version}; this test is about 1.x"
    arguments = [*by_hand(model_dir, repo), "--result", tmp_path / "result.json"]
    first = run_upload(*arguments, token=hub.writer, python=str(python))
    second = run_upload(*arguments, token=hub.writer, python=str(python))
    assert (first.returncode, second.returncode) == (0, 0), output_of(first) + output_of(second)
    assert first.stdout.count("  verified ") == 6
    assert "Nothing changed" in second.stdout
    call = f"snapshot_download({repo!r}, cache_dir={str(tmp_path / 'old')!r})"
    code = f"from huggingface_hub import snapshot_download; print({call})"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.writer}
    loaded = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for file in json.loads((tmp_path / "result.json").read_text())["files"]:
        assert (Path(loaded.stdout.strip()) / file["path"]).read_bytes() == (
            model_dir / file["path"]
        ).read_bytes()
