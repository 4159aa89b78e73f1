"""Listing endpoints: files of a commit, branches, tags, history."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .blobs import git_blob_sha1, lfs_pointer
from .errors import ENTRY_NOT_FOUND, HubError
from .hub import commit_of, hub_of, json_body, page, parameter, readable, writable
from .names import check_file_path
from .repos import FileEntry, Tree


def _file(path: str, entry: FileEntry) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.lfs:
        pointer_size = len(lfs_pointer(entry.sha256, entry.size))
        value["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer_size}
    return value


def _folder(path: str) -> dict[str, Any]:
    # Folders are not stored as objects; clients only need a stable id.
    return {"type": "directory", "oid": git_blob_sha1(path.encode()), "size": 0, "path": path}


def _folders_of(files: Tree) -> set[str]:
    """Return the folders of all files: a/b/c.txt -> {a, a/b}."""
    folders = set()
    for path in files:
        while "/" in path:
            path = path.rsplit("/", 1)[0]
            folders.add(path)
    return folders


async def tree(request: Request) -> Response:
    """List files and folders below a folder, all levels with `recursive=True`."""
    key = readable(request)
    files = commit_of(request, key).files
    top = parameter(request, "path").strip("/")
    entries = {folder: _folder(folder) for folder in _folders_of(files)}
    entries.update({path: _file(path, entry) for path, entry in files.items()})
    if top and entries.get(check_file_path(top), {}).get("type") != "directory":
        raise HubError(404, f"{top!r} is not a folder at this revision", ENTRY_NOT_FOUND)
    prefix = f"{top}/" if top else ""
    recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
    listed = [
        entries[path]
        for path in sorted(entries)
        if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
    ]
    return page(request, listed)


async def paths_info(request: Request) -> Response:
    """List the requested paths that exist; the body is a form or JSON, depending on the client."""
    key = readable(request)
    files = commit_of(request, key).files
    if request.headers.get("content-type", "").startswith("application/json"):
        asked = [str(path) for path in (await json_body(request)).get("paths", [])]
    else:
        asked = parse_qs((await request.body()).decode()).get("paths", [])
    folders = _folders_of(files)
    found = []
    for path in asked:
        if path in files:
            found.append(_file(path, files[path]))
        elif path.rstrip("/") in folders:
            found.append(_folder(path.rstrip("/")))
    return JSONResponse(found)


async def refs(request: Request) -> Response:
    """List branches and tags."""
    known = hub_of(request).repos.refs(readable(request))
    return JSONResponse(
        {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                for name, sha in known["branches"].items()
            ],
            "tags": [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha}
                for name, sha in known["tags"].items()
            ],
            "converts": [],
            "pullRequests": [
                {"name": name, "ref": name, "targetCommit": sha} for name, sha in known["pulls"].items()
            ],
        }
    )


async def discussions(request: Request) -> Response:
    """List the pull requests, newest first; they are the only discussions, and all are open."""
    key = readable(request)
    repos = hub_of(request).repos
    found = []
    for name, sha in reversed(repos.refs(key)["pulls"].items()):
        commit = repos.commit(key, sha)
        found.append(
            {
                "num": int(name.removeprefix("refs/pr/")),
                "title": commit.title,
                "author": {"name": commit.author},
                "createdAt": commit.date,
                "status": "open",
                "isPullRequest": True,
                "repo": {"name": key.id, "type": key.kind.removesuffix("s")},
            }
        )
    return JSONResponse({"discussions": found, "count": len(found), "start": 0})


async def commits(request: Request) -> Response:
    """List the commits of a revision, newest first."""
    key = readable(request)
    history = hub_of(request).repos.history(key, commit_of(request, key).sha)
    return page(
        request,
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in history
        ],
    )


async def create_branch(request: Request) -> Response:
    """Create a branch; it starts at the revision in the body."""
    key, _ = writable(request)
    repos = hub_of(request).repos
    start = (await json_body(request)).get("startingPoint") or "main"
    repos.add_ref(key, "branches", parameter(request, "ref"), repos.resolve(key, str(start)))
    return JSONResponse({"success": True})


async def delete_branch(request: Request) -> Response:
    """Delete a branch."""
    key, _ = writable(request)
    hub_of(request).repos.delete_ref(key, "branches", parameter(request, "ref"))
    return JSONResponse({"success": True})


async def create_tag(request: Request) -> Response:
    """Create a tag: the URL names the revision, the body the tag."""
    key, _ = writable(request)
    repos = hub_of(request).repos
    tag = str((await json_body(request)).get("tag", ""))
    repos.add_ref(key, "tags", tag, repos.resolve(key, parameter(request, "ref")))
    return JSONResponse({"success": True})


async def delete_tag(request: Request) -> Response:
    """Delete a tag."""
    key, _ = writable(request)
    hub_of(request).repos.delete_ref(key, "tags", parameter(request, "ref"))
    return JSONResponse({"success": True})
