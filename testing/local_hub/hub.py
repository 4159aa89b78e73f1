"""State of the server for request handlers: stores, accounts, and checks for access to a repository."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse

from .accounts import Accounts, User
from .blobs import BlobStore
from .errors import REPO_NOT_FOUND, HubError
from .names import RepoKey, repo_key
from .repos import Commit, RepoStore


@dataclass
class Hub:
    """The server's state; handlers find it with hub_of(request)."""

    accounts: Accounts
    blobs: BlobStore
    repos: RepoStore
    part_size: int
    # Signs upload URLs. New at every start: after a restart a client has to start its upload again.
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    def open(cls, root: Path, tokens: Path, part_size: int) -> Hub:
        """Return the state of a server that keeps its files below ``root``."""
        return cls(Accounts.load(tokens), BlobStore(root), RepoStore(root), part_size)


def hub_of(request: Request) -> Hub:
    """Return the server's state."""
    return request.app.state.hub


def parameter(request: Request, name: str) -> str:
    """Return a decoded part of the URL's path (routes match the undecoded path, see app.py)."""
    return unquote(request.path_params.get(name, ""))


def base_url(request: Request) -> str:
    """Return the server's address as used by this client; it has other names in other networks."""
    return f"{request.url.scheme}://{request.headers.get('host') or request.url.netloc}"


def key_of(request: Request) -> RepoKey:
    """Return the repository that the URL names; it need not exist."""
    kind = parameter(request, "kind") or "models"
    return repo_key(kind, parameter(request, "owner"), parameter(request, "name"))


def signed_in(request: Request) -> User:
    """Return the caller; 401 without a token."""
    user = hub_of(request).accounts.user_of(request)
    if user is None:
        raise HubError(401, "this request needs a token: send the header 'Authorization: Bearer TOKEN'")
    return user


def readable(request: Request) -> RepoKey:
    """Return the repository in the URL, if the caller may read it."""
    hub, key = hub_of(request), key_of(request)
    user = hub.accounts.user_of(request)
    owns = user is not None and user.owns(key.owner)
    if hub.repos.exists(key) and (owns or not hub.repos.meta(key)["private"]):
        return key
    # The same answer for missing and private repositories, which must be indistinguishable.
    raise HubError(404 if user else 401, f"Repository not found: {key.kind[:-1]} {key.id}", REPO_NOT_FOUND)


def require_write(user: User, owner: str) -> None:
    """Refuse read-only tokens and other users' namespaces, each with its own message."""
    if user.role != "write":
        raise HubError(
            403, f"this token of user {user.name} has the role '{user.role}'; writing needs 'write'"
        )
    if not user.owns(owner):
        known = ", ".join((user.name, *user.orgs))
        raise HubError(403, f"user {user.name} may not write in the namespace '{owner}', only in: {known}")


def writable(request: Request) -> tuple[RepoKey, User]:
    """Return the repository in the URL and the caller, if the caller may change it."""
    user = signed_in(request)
    key = readable(request)
    require_write(user, key.owner)
    return key, user


def commit_of(request: Request, key: RepoKey) -> Commit:
    """Return the commit of the URL's revision; of `main` if the URL has none."""
    repos = hub_of(request).repos
    return repos.commit(key, repos.resolve(key, parameter(request, "revision") or "main"))


async def json_body(request: Request) -> dict[str, Any]:
    """Return the request's JSON object; an empty body counts as an empty object."""
    body = await request.body()
    try:
        value = await request.json() if body else {}
    except ValueError as error:
        raise HubError(400, f"the request body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise HubError(400, "the request body must be a JSON object")
    return value


def page(request: Request, items: list[Any], size: int = 1000) -> JSONResponse:
    """Return one page of a listing, with the Link header by which clients find the next one."""
    try:
        start = int(request.query_params.get("cursor", "0"))
        limit = min(max(int(request.query_params.get("limit", str(size))), 1), size)
    except ValueError as error:
        raise HubError(400, f"cursor and limit must be numbers: {error}") from error
    headers = {}
    if start + limit < len(items):
        query = request.url.include_query_params(cursor=start + limit).query
        headers["Link"] = f'<{base_url(request)}{request.url.path}?{query}>; rel="next"'
    return JSONResponse(items[start : start + limit], headers=headers)
