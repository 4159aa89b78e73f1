"""The test Hub serves the unmodified huggingface_hub of this environment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from testing.paths import ROOT


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.writer)


@pytest.fixture
def repo(api: HfApi, request: pytest.FixtureRequest) -> str:
    """A fresh private repository, named after the test."""
    name = "alice/" + request.node.originalname.removeprefix("test_")[:80].strip("_")
    api.create_repo(name, private=True)
    return name


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file in a folder, without the file that the Hub itself adds."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.glob("**/*")
        if file.is_file() and file.name != ".gitattributes"
    }


def status_of(call: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as raised:
        call()
    return raised.value.response.status_code


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_what_is_uploaded_comes_back_byte_for_byte(hub, api, repo, model_dir, tmp_path):
    api.upload_folder(repo_id=repo, folder_path=model_dir)
    back = snapshot_download(repo, endpoint=hub.url, token=hub.writer, cache_dir=tmp_path / "cache")
    assert contents(Path(back)) == contents(model_dir)


def test_uploading_the_same_again_makes_no_commit(api, repo, small_model_dir):
    first = api.upload_folder(repo_id=repo, folder_path=small_model_dir)
    again = api.upload_folder(repo_id=repo, folder_path=small_model_dir)
    assert again.oid == first.oid
    assert [commit.title for commit in api.list_repo_commits(repo)] == [
        "Upload folder using huggingface_hub",
        "initial commit",
    ]


def test_a_large_file_travels_in_parts_and_leaves_none_behind(hub, api, repo, model_dir):
    api.upload_file(
        repo_id=repo, path_or_fileobj=model_dir / "model.safetensors", path_in_repo="model.safetensors"
    )
    [info] = api.get_paths_info(repo, "model.safetensors")
    assert info.lfs.sha256 == contents(model_dir)["model.safetensors"]
    assert list((hub.root / "incoming").iterdir()) == []


def test_files_are_listed_with_sizes_and_hashes(api, repo, small_model_dir):
    api.upload_folder(repo_id=repo, folder_path=small_model_dir)
    info = api.model_info(repo, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert info.private
    assert sizes["model.safetensors"] == 2000 and sizes["empty.txt"] == 0 and sizes["größe [1] 模型.txt"] == 2
    top_level = {entry.path for entry in api.list_repo_tree(repo)}
    assert "nested" in top_level and "nested/deeper" not in top_level
    assert [entry.path for entry in api.list_repo_tree(repo, "nested/deeper")] == ["nested/deeper/notes.txt"]


def test_a_listing_comes_in_pages(hub, api, repo, small_model_dir):
    api.upload_folder(repo_id=repo, folder_path=small_model_dir)
    url, names = f"{hub.url}/api/models/{repo}/tree/main?limit=2&recursive=true", []
    while url:
        answer = httpx.get(url, headers=bearer(hub.writer))
        assert len(answer.json()) <= 2
        names += [entry["path"] for entry in answer.json()]
        url = answer.links.get("next", {}).get("url")
    assert names == [entry.path for entry in api.list_repo_tree(repo, recursive=True)]


def test_a_range_gives_exactly_these_bytes(hub, api, repo, model_dir):
    weights = (model_dir / "model.safetensors").read_bytes()
    api.upload_file(repo_id=repo, path_or_fileobj=weights, path_in_repo="model.safetensors")
    url = f"{hub.url}/{repo}/resolve/main/model.safetensors"
    part = httpx.get(url, headers={**bearer(hub.writer), "Range": "bytes=5000000-5000999"})
    assert (part.status_code, part.content) == (206, weights[5_000_000:5_001_000])
    assert part.headers["Content-Range"] == f"bytes 5000000-5000999/{len(weights)}"
    assert part.headers["X-Linked-ETag"] == f'"{hashlib.sha256(weights).hexdigest()}"'
    beyond = httpx.get(url, headers={**bearer(hub.writer), "Range": f"bytes={len(weights)}-"})
    assert beyond.status_code == 416


def test_an_interrupted_download_resumes_where_it_stopped(hub, api, repo, model_dir, tmp_path):
    from huggingface_hub.file_download import http_get

    weights = (model_dir / "model.safetensors").read_bytes()
    api.upload_file(repo_id=repo, path_or_fileobj=weights, path_in_repo="model.safetensors")
    target = tmp_path / "model.safetensors.incomplete"
    target.write_bytes(weights[:7_000_000])
    with target.open("ab") as file:
        http_get(
            f"{hub.url}/{repo}/resolve/main/model.safetensors",
            file,
            resume_size=7_000_000,
            headers=bearer(hub.writer),
            expected_size=len(weights),
        )
    assert target.read_bytes() == weights


def test_datasets_are_served_beside_models_of_the_same_name(hub, api, repo, tmp_path):
    source = tmp_path / "gsm8k"
    (source / "main").mkdir(parents=True)
    (source / "main" / "train-00000-of-00001.parquet").write_bytes(os.urandom(5000))
    (source / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    api.create_repo(repo, repo_type="dataset", private=False)
    api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=source)
    back = snapshot_download(
        repo, repo_type="dataset", endpoint=hub.url, token=False, cache_dir=tmp_path / "cache"
    )
    assert contents(Path(back)) == contents(source)
    assert api.dataset_info(repo).sha != api.model_info(repo).sha


def test_branches_and_tags_keep_their_own_content(hub, api, repo, tmp_path):
    api.upload_file(repo_id=repo, path_or_fileobj=b"one", path_in_repo="file.txt")
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="feature/two")
    api.upload_file(repo_id=repo, path_or_fileobj=b"two", path_in_repo="file.txt", revision="feature/two")
    read = {
        revision: Path(
            hf_hub_download(
                repo,
                "file.txt",
                revision=revision,
                endpoint=hub.url,
                token=hub.writer,
                cache_dir=tmp_path / "cache",
            )
        ).read_text()
        for revision in ("main", "v1", "feature/two")
    }
    assert read == {"main": "one", "v1": "one", "feature/two": "two"}
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="nowhere")


def test_files_and_folders_can_be_deleted_by_a_commit(api, repo, small_model_dir):
    api.upload_folder(repo_id=repo, folder_path=small_model_dir)
    deletions = [CommitOperationDelete("nested/"), CommitOperationDelete("empty.txt")]
    api.create_commit(repo, deletions, commit_message="tidy up")
    assert {"nested/deeper/notes.txt", "empty.txt"}.isdisjoint(api.list_repo_files(repo))
    assert "config.json" in api.list_repo_files(repo)


def test_commits_of_two_clients_at_once_both_land(hub, api, repo):
    def commit_ten(client: int) -> None:
        other = HfApi(endpoint=hub.url, token=hub.writer)
        for number in range(10):
            other.upload_file(
                repo_id=repo,
                path_or_fileobj=f"{client} {number}".encode(),
                path_in_repo=f"{client}/{number}.txt",
            )

    threads = [threading.Thread(target=commit_ten, args=(client,)) for client in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.list_repo_files(repo)) == 1 + 20
    assert len(api.list_repo_commits(repo)) == 1 + 20


def test_a_commit_on_an_outdated_parent_is_refused(api, repo):
    old = api.model_info(repo).sha
    api.upload_file(repo_id=repo, path_or_fileobj=b"x", path_in_repo="x.txt", parent_commit=old)
    late = [CommitOperationAdd("y.txt", b"y")]
    assert status_of(lambda: api.create_commit(repo, late, commit_message="late", parent_commit=old)) == 412
    assert "y.txt" not in api.list_repo_files(repo)


def test_a_wrong_token_is_refused_even_for_public_content(hub, api, repo):
    api.update_repo_settings(repo, private=False)
    stranger = HfApi(endpoint=hub.url, token="hf_unknown")
    assert status_of(stranger.whoami) == 401
    assert status_of(lambda: stranger.model_info(repo)) == 401
    assert HfApi(endpoint=hub.url, token=False).model_info(repo).id == repo


def test_a_private_repository_looks_missing_to_others(hub, api, repo):
    for token in (False, hub.stranger):
        other = HfApi(endpoint=hub.url, token=token)
        with pytest.raises(RepositoryNotFoundError):
            other.model_info(repo)
        with pytest.raises(RepositoryNotFoundError):
            other.list_repo_files(repo)
        assert not other.repo_exists(repo)
        assert httpx.get(f"{hub.url}/{repo}/resolve/main/.gitattributes").status_code == 401
    assert HfApi(endpoint=hub.url, token=hub.reader).model_info(repo).id == repo


def test_a_read_only_token_cannot_write_and_gets_the_reason(hub, api, repo):
    reader = HfApi(endpoint=hub.url, token=hub.reader)
    calls = [
        lambda: reader.create_repo("alice/new"),
        lambda: reader.upload_file(repo_id=repo, path_or_fileobj=b"x", path_in_repo="x.txt"),
        lambda: reader.delete_repo(repo),
    ]
    for call in calls:
        with pytest.raises(HfHubHTTPError, match="role 'read'") as raised:
            call()
        assert raised.value.response.status_code == 403


def test_only_members_write_in_a_namespace(hub, api):
    api.create_repo("acme/model", private=False)
    stranger = HfApi(endpoint=hub.url, token=hub.stranger)
    assert status_of(lambda: stranger.create_repo("acme/other")) == 403
    upload = dict(repo_id="acme/model", path_or_fileobj=b"x", path_in_repo="x.txt")
    assert status_of(lambda: stranger.upload_file(**upload)) == 403


def test_creating_a_repository_twice_is_a_conflict_unless_allowed(api, repo):
    assert status_of(lambda: api.create_repo(repo)) == 409
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    api.delete_repo(repo)
    assert not api.repo_exists(repo)


@pytest.mark.parametrize(
    "path", ["../escape.txt", "a/../../escape.txt", "/etc/passwd", "a//b", ".git/config", ""]
)
def test_a_path_that_leaves_the_repository_is_refused(hub, api, path):
    api.create_repo("alice/paths", exist_ok=True)
    url = f"{hub.url}/api/models/alice/paths/commit/main"
    lines = (
        '{"key": "header", "value": {"summary": "escape"}}\n'
        f'{{"key": "file", "value": {{"path": "{path}", "content": "eA==", "encoding": "base64"}}}}\n'
    )
    answer = httpx.post(url, content=lines, headers=bearer(hub.writer))
    assert answer.status_code == 400
    assert "not allowed" in answer.json()["error"]
    assert api.list_repo_files("alice/paths") == [".gitattributes"]


@pytest.mark.parametrize(
    "path", ["..%2F..%2Faccounts.json", "%2Fetc%2Fpasswd", "a/%2e%2e/%2e%2e/accounts.json"]
)
def test_a_download_cannot_leave_the_repository(hub, api, path):
    api.create_repo("alice/paths", exist_ok=True)
    answer = httpx.get(f"{hub.url}/alice/paths/resolve/main/{path}", headers=bearer(hub.writer))
    assert answer.status_code in (400, 404)
    assert "hf_" not in answer.text


def test_content_with_another_hash_than_announced_is_refused(hub, api, repo):
    announced = hashlib.sha256(b"right").hexdigest()
    answer = httpx.post(
        f"{hub.url}/{repo}.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": announced, "size": 5}]},
        headers=bearer(hub.writer),
    )
    upload_url = answer.json()["objects"][0]["actions"]["upload"]["href"]
    refused = httpx.put(upload_url, content=b"wrong")
    assert refused.status_code == 400 and "nothing was stored" in refused.json()["error"]
    assert httpx.put(upload_url.replace("/5?", "/6?"), content=b"wrong!").status_code == 403
    assert httpx.put(upload_url, content=b"right").status_code == 200


def test_upload_urls_use_the_name_by_which_the_client_reached_the_server(hub, api, repo):
    answer = httpx.post(
        f"{hub.url}/{repo}.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": "0" * 64, "size": 5}]},
        headers={**bearer(hub.writer), "Host": "hub:8090"},
    )
    actions = answer.json()["objects"][0]["actions"]
    assert all(action["href"].startswith("http://hub:8090/") for action in actions.values())


def test_a_second_server_on_the_same_folder_is_refused(hub):
    argv = [sys.executable, "-m", "testing.local_hub", "--root", str(hub.root), "--port", "0"]
    second = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode != 0
    assert "another server already uses" in second.stderr


def test_health_answers_without_a_token(hub):
    assert httpx.get(f"{hub.url}/health").text == "ok"
