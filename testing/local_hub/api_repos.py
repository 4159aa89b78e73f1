"""Account and repository endpoints: whoami, create, delete, settings, info."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .blobs import git_blob_sha1, lfs_pointer
from .cards import card_problems
from .errors import REPO_NOT_FOUND, HubError
from .hub import base_url, commit_of, hub_of, json_body, readable, require_write, signed_in, writable
from .lfs_rules import GIT_ATTRIBUTES
from .names import KINDS, RepoKey, repo_key
from .repos import FileEntry


async def whoami(request: Request) -> Response:
    """Return the token's user, organisations and role."""
    user = signed_in(request)
    return JSONResponse(
        {
            "type": "user",
            "id": f"user-{user.name}",
            "name": user.name,
            "fullname": user.name,
            "orgs": [
                {"type": "org", "id": f"org-{org}", "name": org, "roleInOrg": "write"} for org in user.orgs
            ],
            "auth": {"type": "access_token", "accessToken": {"displayName": "local_hub", "role": user.role}},
        }
    )


async def _key_from_body(request: Request) -> tuple[RepoKey, dict[str, object]]:
    """Return the repository of `repos/create` and `repos/delete`, which is in the body, not in the URL."""
    body = await json_body(request)
    kind = KINDS.get(str(body.get("type") or "model"))
    if kind is None:
        raise HubError(
            400, f"repository type {body.get('type')!r} is not served here; use one of {', '.join(KINDS)}"
        )
    user = signed_in(request)
    return repo_key(kind, str(body.get("organization") or user.name), str(body.get("name") or "")), body


async def create(request: Request) -> Response:
    """Create a repository; 409 with its URL if it exists."""
    hub = hub_of(request)
    key, body = await _key_from_body(request)
    user = signed_in(request)
    require_write(user, key.owner)
    url = f"{base_url(request)}/{key.url_path}"
    if hub.repos.exists(key):
        # The url is part of the answer because clients with exist_ok=True read it from there.
        return JSONResponse(
            {"error": f"You already created this {key.kind[:-1]} repo", "url": url, "name": key.id},
            status_code=409,
        )
    sha256 = hub.blobs.put(GIT_ATTRIBUTES)
    first = FileEntry(len(GIT_ATTRIBUTES), git_blob_sha1(GIT_ATTRIBUTES), sha256, lfs=False)
    hub.repos.create(key, _is_private(body, default=False), user.name, {".gitattributes": first})
    return JSONResponse({"url": url, "name": key.id, "id": key.id})


def _is_private(body: dict[str, object], default: bool) -> bool:
    """Return the requested visibility: clients send `visibility` (2.x, late 1.x) or `private` (older)."""
    if body.get("visibility") is not None:
        return body["visibility"] != "public"
    return bool(body.get("private", default))


async def delete(request: Request) -> Response:
    """Delete a repository."""
    hub = hub_of(request)
    key, _ = await _key_from_body(request)
    require_write(signed_in(request), key.owner)
    if not hub.repos.exists(key):
        raise HubError(404, f"Repository not found: {key.kind[:-1]} {key.id}", REPO_NOT_FOUND)
    hub.repos.delete(key)
    return JSONResponse({"success": True})


async def settings(request: Request) -> Response:
    """Change a repository's visibility."""
    key, _ = writable(request)
    repos = hub_of(request).repos
    private = _is_private(await json_body(request), default=repos.meta(key)["private"])
    repos.set_private(key, private)
    return JSONResponse({"private": private})


async def auth_check(request: Request) -> Response:
    """Answer whether the caller may read the repository."""
    readable(request)
    return JSONResponse({"success": True})


async def auth_check_write(request: Request) -> Response:
    """Answer whether the caller may write the repository."""
    writable(request)
    return JSONResponse({"success": True})


async def validate_yaml(request: Request) -> Response:
    """Check the metadata of a card: clients send this request before they upload a README.md."""
    problems = card_problems(str((await json_body(request)).get("content", "")))
    errors = [{"message": problem} for problem in problems]
    return JSONResponse({"errors": errors, "warnings": []}, status_code=400 if errors else 200)


async def info(request: Request) -> Response:
    """Return the repository info of main or of a revision; `blobs=True` adds sizes and hashes."""
    key = readable(request)
    commit = commit_of(request, key)
    meta = hub_of(request).repos.meta(key)
    with_blobs = request.query_params.get("blobs", "").lower() == "true"
    siblings = []
    for path, entry in commit.files.items():
        sibling: dict[str, object] = {"rfilename": path}
        if with_blobs:
            sibling.update(size=entry.size, blobId=entry.oid)
            if entry.lfs:
                pointer_size = len(lfs_pointer(entry.sha256, entry.size))
                sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": pointer_size}
        siblings.append(sibling)
    return JSONResponse(
        {
            "_id": commit.sha[:24],
            "id": key.id,
            "modelId": key.id,
            "author": key.owner,
            "sha": commit.sha,
            "private": meta["private"],
            "gated": False,
            "disabled": False,
            "createdAt": meta["created"],
            "lastModified": commit.date,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
    )
