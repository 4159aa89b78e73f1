"""Program upload, run as a user or a job would run it, against a real server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.hub import upload
from testing.paths import PLUGINS, cluster_python


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


def test_secrets_and_trainer_state_never_reach_a_public_repository_and_the_log_names_them(
    hub, api, run_upload, small_model_dir, repo
):
    stay = (".env", ".netrc", ".ssh/id_rsa", "token", "optimizer.pt", "checkpoint-5/model.safetensors")
    for name in stay:
        (small_model_dir / name).parent.mkdir(exist_ok=True)
        (small_model_dir / name).write_text("private")
    (small_model_dir / "notes.md").write_text("-----BEGIN RSA PRIVATE KEY-----")
    done = run_upload(*by_hand(small_model_dir, repo), "--public", token=hub.writer)
    assert done.returncode == 0, output_of(done)
    files = api.list_repo_files(repo)
    assert not [name for name in (*stay, "notes.md") if name in files]
    assert {"config.json", "tokenizer.json", "model.safetensors", "nested/deeper/notes.txt"} <= set(files)
    for left_out in (".env", ".netrc", ".ssh/", "token", "optimizer.pt", "checkpoint-5/", "notes.md"):
        assert f"Left out: {left_out} (" in done.stdout


def test_a_link_to_a_file_outside_is_refused_before_anything_is_sent(
    hub, api, run_upload, small_model_dir, repo, tmp_path
):
    (tmp_path / "diary.txt").write_text("private")
    (small_model_dir / "notes.txt").symlink_to(tmp_path / "diary.txt")
    done = run_upload(*by_hand(small_model_dir, repo), token=hub.writer)
    assert done.returncode == 2
    assert f"notes.txt is a link to {tmp_path}/diary.txt, outside of the model directory" in done.stderr
    assert not api.repo_exists(repo)


def test_a_truncated_weight_file_is_refused_before_anything_is_sent(
    hub, api, run_upload, small_model_dir, repo
):
    weights = small_model_dir / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    done = run_upload(*by_hand(small_model_dir, repo), token=hub.writer)
    assert done.returncode == 2
    assert "model.safetensors is cut off: it has 1999 bytes, and its header describes 2000" in done.stderr
    assert not api.repo_exists(repo)


def test_a_model_that_transformers_cannot_load_is_refused_before_anything_is_sent(
    hub, api, run_upload, small_model_dir, repo
):
    (small_model_dir / "tokenizer.json").write_text('{"version": "1.0"}')
    done = run_upload(*by_hand(small_model_dir, repo), token=hub.writer, python=str(cluster_python()))
    assert done.returncode == 2, output_of(done)
    assert "model_dir: transformers cannot load the tokenizer of" in done.stderr
    assert not api.repo_exists(repo)


def with_card(
    model_dir: Path, repo: str, tmp_path: Path, evaluation: Path | None = None, **more: object
) -> list[object]:
    """Settings with a model card and tags, as the pipeline writes them."""
    card = {"recipe": "r", "run": "run 1", "base_model": "meta/llama", "base_model_dir": "/nowhere"}
    jobs = [{"name": "sft", "directory": str(tmp_path / "sft"), "gpus": 1}]
    card |= {"data": {}, "jobs": jobs, "evaluation": str(evaluation) if evaluation else None}
    values = {"model_dir": str(model_dir), "repo_id": repo, "result": str(tmp_path / "result.json")}
    (tmp_path / "settings.json").write_text(json.dumps({**values, "card": card, **more}))
    return ["--settings", tmp_path / "settings.json"]


def test_model_and_card_arrive_in_one_commit_to_which_the_tags_point(
    hub, api, run_upload, small_model_dir, repo, tmp_path
):
    (tmp_path / "sft" / "attempt-1").mkdir(parents=True)
    metrics = "".join(
        json.dumps({"step": step, "time": step, "data": {"train/loss": 1 / step}}) + "\n" for step in (1, 2)
    )
    (tmp_path / "sft" / "attempt-1" / attempt_dir.METRICS).write_text(metrics)
    for tag in ("nightly-2026-11-01", "nightly-2026-11-02"):
        tags = [tag, "latest-good"]
        settings = with_card(small_model_dir, repo, tmp_path, tags=tags, keep_published=1)
        done = run_upload(*settings, token=hub.writer)
        assert done.returncode == 0, output_of(done)
    assert "Nothing changed" in done.stdout, "the same card makes no new commit"
    assert len(api.list_repo_commits(repo)) == 2
    head = api.model_info(repo).sha
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    assert tags == {"nightly-2026-11-02": head, "latest-good": head}
    card = Path(api.hf_hub_download(repo, "README.md", cache_dir=tmp_path / "cache")).read_text()
    assert "base_model: meta/llama" in card and "![Curves of the training](training_curves.svg)" in card
    assert "training_curves.svg" in api.list_repo_files(repo)


def test_the_next_run_finds_the_score_of_the_published_model(
    hub, api, run_upload, small_model_dir, repo, tmp_path
):
    def asked(name: str, token: str = hub.writer) -> subprocess.CompletedProcess[str]:
        program = (
            "import json, sys\n"
            "from llm_bridge.remote.node.hub import published\n"
            "print(json.dumps(published.score(*sys.argv[1:])))\n"
        )
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "PYTHONPATH": str(PLUGINS)}
        argv = [sys.executable, "-c", program, name, "gsm8k", "hash", "c1"]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert json.loads(asked(repo).stdout)["exists"] is False
    models = {"base": {"score": 0.1, "interval": [0, 0.2]}, "sft": {"score": 0.25, "interval": [0.2, 0.3]}}
    evaluation = {"metric": "gsm8k", "rows": 9, "seed": 0, "data": {"hash": "hash"}, "models": models}
    evaluation["conditions"] = "c1"
    (tmp_path / "evaluate" / "attempt-1").mkdir(parents=True)
    result = tmp_path / "evaluate" / "attempt-1" / attempt_dir.RESULT
    result.write_text(json.dumps({"evaluation": evaluation}))
    settings = with_card(small_model_dir, repo, tmp_path, tmp_path / "evaluate")
    done = run_upload(*settings, token=hub.writer)
    assert done.returncode == 0, output_of(done)
    assert json.loads((tmp_path / "result.json").read_text())["score"] == 0.25
    assert json.loads(asked(repo).stdout) == {"exists": True, "score": 0.25, "note": ""}
    result.write_text(json.dumps({"evaluation": {**evaluation, "seed": 1}}))
    assert run_upload(*settings, token=hub.writer).returncode == 0
    assert len(api.list_repo_commits(repo)) == 3, "a new evaluation is a new card"
    refused = asked(repo, token="hf_nobody")
    assert refused.returncode and "cannot read the model card" in refused.stderr


def test_a_model_that_is_no_longer_better_than_the_published_one_is_not_uploaded(
    hub, api, run_upload, small_model_dir, repo, tmp_path
):
    """Two runs at once: both were better than what was there as they were evaluated."""

    def run(name: str, score: float) -> dict[str, object]:
        model = {"score": score, "interval": [score - 0.1, score + 0.1]}
        evaluation = {"metric": "gsm8k", "data": {"hash": "h"}, "conditions": "c1", "models": {"sft": model}}
        result = tmp_path / name / "evaluate" / "attempt-1" / attempt_dir.RESULT
        result.parent.mkdir(parents=True)
        result.write_text(json.dumps({"evaluation": evaluation}))
        stage = result.parents[1]
        (tmp_path / name / attempt_dir.STAGE_MANIFEST).write_text("{}")
        settings = with_card(small_model_dir, repo, tmp_path / name, stage, better_than_published=True)
        for _ in range(2):  # again after a kill: its own model is not one to be better than
            done = run_upload(*settings, token=hub.writer)
            assert done.returncode == 0, output_of(done)
        return json.loads((tmp_path / name / "result.json").read_text())

    assert run("first", 0.5)["score"] == 0.5
    head = api.model_info(repo).sha
    refused = run("second", 0.55)
    assert refused["not_published"] == (
        "not published because the model is not certainly better than the published model: its score is 0.55 (95 % "
        "interval 0.45 to 0.65), and that of the published model 0.5"
    )
    assert api.model_info(repo).sha == head
    manifests = [(tmp_path / name / attempt_dir.STAGE_MANIFEST).exists() for name in ("first", "second")]
    assert manifests == [True, False], "a cleared upload compares again"
    assert run("third", 0.7)["new_commit"] is False and api.model_info(repo).sha != head


def test_a_pull_request_is_opened_once_and_main_and_tags_stay(
    hub, api, run_upload, small_model_dir, repo, tmp_path
):
    settings = with_card(small_model_dir, repo, tmp_path, pull_request=True, tags=["latest-good"])
    for is_new in (True, False):
        done = run_upload(*settings, token=hub.writer)
        assert done.returncode == 0, output_of(done)
        result = json.loads((tmp_path / "result.json").read_text())
        assert (result["pull_request"], result["new_commit"]) == (f"{hub.url}/{repo}/discussions/1", is_new)
        assert "tags" not in result
    assert f"already at the pull request {hub.url}/{repo}/discussions/1" in done.stdout
    assert api.list_repo_files(repo) == [".gitattributes"] and not api.list_repo_refs(repo).tags
    assert "README.md" in api.list_repo_files(repo, revision="refs/pr/1")
    assert result["revision"] == api.model_info(repo, revision="refs/pr/1").sha
    (small_model_dir / "empty.txt").write_text("changed")
    assert run_upload(*settings, token=hub.writer).returncode == 0
    assert json.loads((tmp_path / "result.json").read_text())["pull_request"].endswith("/discussions/2")


def test_a_card_that_a_person_wrote_is_left_as_it_is(hub, api, run_upload, small_model_dir, repo, tmp_path):
    api.create_repo(repo, private=True)
    api.upload_file(repo_id=repo, path_or_fileobj=b"# Mine", path_in_repo="README.md")
    done = run_upload(*with_card(small_model_dir, repo, tmp_path), token=hub.writer)
    assert done.returncode == 0, output_of(done)
    assert "is left as it is" in done.stdout
    card = Path(api.hf_hub_download(repo, "README.md", cache_dir=tmp_path / "cache")).read_text()
    assert card == "# Mine"


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("---\nbase_model: not an id\n---\n# Mine\n", '"base_model" must be an id'),
        ("---\ntags: [\n---\n# Mine\n", "while parsing a flow"),
    ],
)
def test_a_card_with_wrong_metadata_is_refused_before_the_weights_are_sent(
    hub, api, run_upload, small_model_dir, repo, card, problem
):
    (small_model_dir / "README.md").write_text(card)
    done = run_upload(*by_hand(small_model_dir, repo), token=hub.writer)
    assert done.returncode == 2, output_of(done)
    assert f"{small_model_dir}/README.md: the metadata" in done.stderr and problem in done.stderr
    assert "Traceback" not in done.stderr and api.list_repo_files(repo) == [".gitattributes"]


def test_a_file_name_that_is_not_utf8_is_refused_before_the_repository_is_created(
    hub, api, run_upload, small_model_dir, repo
):
    Path(os.fsdecode(os.fsencode(small_model_dir) + b"/caf\xe9.txt")).touch()
    done = run_upload(*by_hand(small_model_dir, repo), token=hub.writer)
    assert done.returncode == 2
    assert "caf\\xe9.txt has a name that is not UTF-8" in done.stderr and "Traceback" not in done.stderr
    assert not api.repo_exists(repo)


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


@pytest.mark.parametrize("stored", [b"hf_two words", "hf_ünïcode".encode()])
def test_a_stored_token_that_cannot_be_one_is_refused_without_showing_it(
    run_upload, small_model_dir, tmp_path, stored
):
    path = tmp_path / "stored"
    path.write_bytes(stored)
    done = run_upload(*by_hand(small_model_dir, "alice/model"), HF_TOKEN_PATH=str(path))
    assert done.returncode == 3
    assert "holds no token" in done.stderr and str(path) in done.stderr
    assert "hf_" not in output_of(done)


def test_a_token_file_that_is_no_text_is_refused_without_showing_a_byte_of_it(
    run_upload, small_model_dir, tmp_path
):
    path = tmp_path / "token"
    path.write_bytes(b"hf_\xff")
    done = run_upload(*by_hand(small_model_dir, "alice/model"), "--token_file", path)
    assert done.returncode == 3 and f"{path}: it is not UTF-8 text" in done.stderr
    assert "hf_" not in output_of(done) and "xff" not in output_of(done)


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


@pytest.mark.parametrize(
    "repo_id", ["model", "a/b/c", "alice/..", "alice/a--b", "alice/m-", "alice/model.git", "-a/b"]
)
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


def test_help_says_that_private_is_the_default_now(uploader):
    done = subprocess.run([sys.executable, *uploader, "--help"], capture_output=True, text=True, check=True)
    assert "older versions of this script created public ones" in " ".join(done.stdout.split())


def test_an_unforeseen_error_that_holds_the_token_is_printed_without_it(small_model_dir, monkeypatch, capfd):
    def fail(*_: object) -> None:
        raise ValueError("Illegal header value b'Bearer hf_verySecret'")

    monkeypatch.setattr(upload, "run", fail)
    monkeypatch.setenv("HF_TOKEN", "hf_verySecret")
    code = upload.main(["--input_tokenizer_and_model_dir", str(small_model_dir), "--repo_id", "alice/model"])
    error = capfd.readouterr().err
    assert code == 1
    assert "Illegal header value b'Bearer [token]'" in error and "hf_verySecret" not in error


def test_the_cluster_environments_older_client_uploads_too(hub, api, run_upload, model_dir, repo, tmp_path):
    python = cluster_python()
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
    assert "Loaded with transformers: configuration, tokenizer" in first.stdout
    assert "Nothing changed" in second.stdout
    call = f"snapshot_download({repo!r}, cache_dir={str(tmp_path / 'old')!r})"
    code = f"from huggingface_hub import snapshot_download; print({call})"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.writer}
    loaded = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for file in json.loads((tmp_path / "result.json").read_text())["files"]:
        assert (Path(loaded.stdout.strip()) / file["path"]).read_bytes() == (
            model_dir / file["path"]
        ).read_bytes()
