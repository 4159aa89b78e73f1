"""Repositories on disk: settings, branches and commits.

    repos/models/OWNER/NAME/meta.json          {"private": ..., "created": ...}
    repos/models/OWNER/NAME/refs.json          {"branches": {"main": COMMIT}, "tags": {}, "pulls": {}}
    repos/models/OWNER/NAME/commits/COMMIT.json  the whole tree of that commit: path -> size, oid, sha256, lfs

Every file is replaced atomically and refs.json is written last, so a crash leaves the previous state.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .blobs import git_blob_sha1, lfs_pointer
from .errors import REVISION_NOT_FOUND, HubError
from .names import SHA1, RepoKey, check_branch


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit. oid is git's object id; for an LFS file that is the id of its pointer text."""

    size: int
    oid: str
    sha256: str
    lfs: bool

    @classmethod
    def for_lfs(cls, sha256: str, size: int) -> FileEntry:
        """Return the entry of a file that is stored through Git-LFS."""
        return cls(size, git_blob_sha1(lfs_pointer(sha256, size)), sha256, lfs=True)

    @property
    def etag(self) -> str:
        """ETag for the comparison of contents: sha256 for LFS, git's id otherwise."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """Commit with its complete file list."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, FileEntry]


Tree = dict[str, FileEntry]


def now() -> str:
    """Return the time in the format of the Hub's API."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


class RepoStore:
    """Store of all repositories, with one lock for all changes: a test server needs no parallel writes."""

    def __init__(self, root: Path) -> None:
        self._root = root / "repos"
        self._trash = root / "incoming"
        self._lock = threading.Lock()

    def _dir(self, key: RepoKey) -> Path:
        return self._root / key.kind / key.owner / key.name

    def exists(self, key: RepoKey) -> bool:
        """Return whether the repository exists."""
        return (self._dir(key) / "meta.json").is_file()

    def create(self, key: RepoKey, private: bool, author: str, files: Tree) -> None:
        """Create a repository with a first commit; meta.json comes last, so exists() means complete."""
        with self._lock:
            if self.exists(key):
                raise HubError(409, f"You already created this {key.kind[:-1]} repo: {key.id}")
            (self._dir(key) / "commits").mkdir(parents=True, exist_ok=True)
            first = self._write_commit(key, None, "initial commit", "", author, files)
            _write_json(self._dir(key) / "refs.json", {"branches": {"main": first}, "tags": {}, "pulls": {}})
            _write_json(self._dir(key) / "meta.json", {"private": private, "created": now()})

    def delete(self, key: RepoKey) -> None:
        """Delete a repository with all its commits."""
        with self._lock:
            moved = self._trash / uuid.uuid4().hex
            os.replace(self._dir(key), moved)  # atomic; its files are deleted afterwards
        shutil.rmtree(moved)

    def meta(self, key: RepoKey) -> dict[str, Any]:
        """Return a repository's settings: ``private`` and ``created``."""
        return json.loads((self._dir(key) / "meta.json").read_text(encoding="utf-8"))

    def set_private(self, key: RepoKey, private: bool) -> None:
        """Change a repository's visibility."""
        with self._lock:
            _write_json(self._dir(key) / "meta.json", {**self.meta(key), "private": private})

    def refs(self, key: RepoKey) -> dict[str, dict[str, str]]:
        """Return the commit of every branch, tag and pull request, by ``branches``, ``tags`` and ``pulls``."""
        return {"pulls": {}, **json.loads((self._dir(key) / "refs.json").read_text(encoding="utf-8"))}

    def resolve(self, key: RepoKey, revision: str) -> str:
        """Return the commit id of a branch, a tag or a full commit id."""
        refs = self.refs(key)
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = refs["branches"].get(name) or refs["tags"].get(name) or refs["pulls"].get(revision)
        if sha is None and SHA1.fullmatch(revision) and self._commit_file(key, revision).is_file():
            sha = revision
        if sha is None:
            raise HubError(
                404, f"Invalid rev id: {revision} (no such branch, tag or commit)", REVISION_NOT_FOUND
            )
        return sha

    def commit(self, key: RepoKey, sha: str) -> Commit:
        """Return a commit with its files."""
        value = json.loads(self._commit_file(key, sha).read_text(encoding="utf-8"))
        value["files"] = {path: FileEntry(**entry) for path, entry in value["files"].items()}
        return Commit(**value)

    def history(self, key: RepoKey, sha: str | None) -> Iterator[Commit]:
        """Return the commits from newest to oldest."""
        while sha is not None:
            commit = self.commit(key, sha)
            yield commit
            sha = commit.parent

    def add_commit(
        self,
        key: RepoKey,
        branch: str,
        title: str,
        message: str,
        author: str,
        parent: str | None,
        change: Callable[[Tree], None],
        create_pr: bool = False,
    ) -> tuple[str, str | None]:
        """Apply `change` to a copy of the branch's files and commit that, all under the lock.

        `parent` (a commit id or its first characters) makes the commit fail if another commit was faster.

        Returns:
            The commit, and with `create_pr` the name of the pull request, to which the commit belongs instead.
        """
        with self._lock:
            refs = self.refs(key)
            branch = branch.removeprefix("refs/heads/")
            if branch not in refs["branches"]:
                raise HubError(404, f"Invalid rev id: {branch} (commits need a branch)", REVISION_NOT_FOUND)
            head = refs["branches"][branch]
            if parent is not None and not head.startswith(parent):
                raise HubError(
                    412,
                    f"A commit has happened since: {branch} is at {head}, not {parent}. Refresh, try again.",
                )
            files = dict(self.commit(key, head).files)
            change(files)
            pull = f"refs/pr/{len(refs['pulls']) + 1}" if create_pr else None
            sha = self._write_commit(key, head, title, message, author, files)
            refs["pulls" if pull else "branches"][pull or branch] = sha
            _write_json(self._dir(key) / "refs.json", refs)
            return sha, pull

    def add_ref(self, key: RepoKey, group: str, name: str, sha: str) -> None:
        """Create a branch (group `branches`) or a tag (group `tags`)."""
        with self._lock:
            refs = self.refs(key)
            if check_branch(name) in refs[group]:
                raise HubError(409, f"Reference already exists: {name}")
            refs[group][name] = sha
            _write_json(self._dir(key) / "refs.json", refs)

    def delete_ref(self, key: RepoKey, group: str, name: str) -> None:
        """Delete a branch or a tag; ``group`` as for :meth:`add_ref`."""
        with self._lock:
            refs = self.refs(key)
            if name == "main" and group == "branches":
                raise HubError(403, "the branch main cannot be deleted")
            if refs[group].pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name} (nothing to delete)", REVISION_NOT_FOUND)
            _write_json(self._dir(key) / "refs.json", refs)

    def _commit_file(self, key: RepoKey, sha: str) -> Path:
        return self._dir(key) / "commits" / f"{sha}.json"

    def _write_commit(
        self, key: RepoKey, parent: str | None, title: str, message: str, author: str, files: Tree
    ) -> str:
        value = {
            "parent": parent, "title": title, "message": message, "author": author, "date": now(),
            "files": {path: asdict(files[path]) for path in sorted(files)},
        }  # fmt: skip
        # The repository is part of the hash: the same change at the same time elsewhere is another commit.
        text = json.dumps([key.kind, key.id, value], sort_keys=True)
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        _write_json(self._commit_file(key, sha), {"sha": sha, **value})
        return sha
