"""Upload endpoints of the API: preupload (how to send each file) and commit."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .blobs import BlobStore, git_blob_sha1
from .errors import ENTRY_NOT_FOUND, HubError
from .hub import base_url, commit_of, hub_of, json_body, parameter, writable
from .lfs_rules import needs_lfs
from .names import SHA256, check_file_path
from .repos import FileEntry, Tree

Change = Callable[[Tree], None]


async def preupload(request: Request) -> Response:
    """Answer for each file: upload by LFS or inside the commit, and the hash of the current content."""
    key, _ = writable(request)
    present = commit_of(request, key).files
    answers = []
    for file in (await json_body(request)).get("files", []):
        path = check_file_path(str(file["path"]))
        answer = {
            "path": path,
            "uploadMode": "lfs" if needs_lfs(path, int(file["size"])) else "regular",
            "shouldIgnore": False,
        }
        if path in present:
            answer["oid"] = present[path].etag
        answers.append(answer)
    return JSONResponse({"files": answers})


async def commit(request: Request) -> Response:
    """Apply one ndjson payload as one commit: a header line, then one operation per line."""
    key, user = writable(request)
    hub = hub_of(request)
    header: dict[str, Any] = {}
    changes: list[Change] = []
    for number, line in enumerate((await request.body()).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            if item["key"] == "header":
                header = item["value"]
            else:
                changes.append(_change(item["key"], item["value"], hub.blobs))
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(400, f"line {number} of the commit is invalid: {error!r}") from error
    if not header.get("summary"):
        raise HubError(400, "the commit has no summary: its header line is missing or empty")

    def apply_all(files: Tree) -> None:
        for change in changes:
            change(files)

    branch, parent = parameter(request, "revision"), header.get("parentCommit")
    title, message = str(header["summary"]), str(header.get("description") or "")
    # In a thread, so that other requests are served meanwhile; the store's lock keeps commits in order.
    create_pr = bool(request.query_params.get("create_pr"))
    sha, pull = await run_in_threadpool(
        hub.repos.add_commit, key, branch, title, message, user.name, parent, apply_all, create_pr
    )
    url = f"{base_url(request)}/{key.url_path}"
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
    if pull:
        answer["pullRequestUrl"] = f"{url}/discussions/{pull.removeprefix('refs/pr/')}"
    return JSONResponse(answer)


def _change(kind: str, value: dict[str, Any], blobs: BlobStore) -> Change:
    """Translate one line of the payload; content is stored here, before the repository is locked."""
    path = check_file_path(str(value["path"]).rstrip("/") if kind == "deletedFolder" else str(value["path"]))
    if kind == "file":
        return _add(path, _regular_file(value, blobs))
    if kind == "lfsFile":
        return _add(path, _lfs_file(path, value, blobs))
    if kind == "deletedFile":
        return _delete(path, lambda known: known == path)
    if kind == "deletedFolder":
        return _delete(path, lambda known: known.startswith(f"{path}/"))
    if kind == "copyFile":
        return _copy(check_file_path(str(value["srcPath"])), path)
    raise HubError(400, f"commit operation {kind!r} is not supported by local_hub")


def _regular_file(value: dict[str, Any], blobs: BlobStore) -> FileEntry:
    if value.get("encoding", "utf-8") == "base64":
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error as error:
            raise HubError(400, f"content of {value['path']!r} is not base64: {error}") from error
    else:
        data = str(value["content"]).encode()
    return FileEntry(len(data), git_blob_sha1(data), blobs.put(data), lfs=False)


def _lfs_file(path: str, value: dict[str, Any], blobs: BlobStore) -> FileEntry:
    """Return the entry of an LFS line, which has only hash and size: the content must be uploaded before."""
    sha256 = str(value["oid"])
    size = blobs.size(sha256) if SHA256.fullmatch(sha256) else None
    if size is None or value.get("size", size) != size:
        raise HubError(
            400, f"{path!r}: its content (sha256 {sha256}) was not uploaded or has another size; upload it"
        )
    return FileEntry.for_lfs(sha256, size)


def _add(path: str, entry: FileEntry) -> Change:
    def change(files: Tree) -> None:
        parents = {path[:index] for index, character in enumerate(path) if character == "/"}
        clash = next((known for known in files if known in parents or known.startswith(f"{path}/")), None)
        if clash is not None:
            raise HubError(
                400, f"cannot add {path!r}: {clash!r} exists, and a name is either a file or a folder"
            )
        files[path] = entry

    return change


def _delete(path: str, matches: Callable[[str], bool]) -> Change:
    def change(files: Tree) -> None:
        doomed = [known for known in files if matches(known)]
        if not doomed:
            raise HubError(404, f"A file with this name doesn't exist: {path}", ENTRY_NOT_FOUND)
        for known in doomed:
            del files[known]

    return change


def _copy(source: str, target: str) -> Change:
    def change(files: Tree) -> None:
        if source not in files:
            raise HubError(404, f"A file with this name doesn't exist: {source}", ENTRY_NOT_FOUND)
        _add(target, files[source])(files)

    return change
