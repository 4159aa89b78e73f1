"""Endpoint `/resolve/`: a file of a revision, with the headers by which clients cache, resume and verify."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from .errors import ENTRY_NOT_FOUND, HubError
from .hub import commit_of, hub_of, parameter, readable
from .names import check_file_path


async def resolve(request: Request) -> Response:
    """Answer GET and HEAD; FileResponse handles ranges. LFS content is served here too, without a redirect."""
    key = readable(request)
    commit = commit_of(request, key)
    path = check_file_path(parameter(request, "path"))
    headers = {"X-Repo-Commit": commit.sha}
    entry = commit.files.get(path)
    if entry is None:
        raise HubError(404, f"Entry not found: {path} in {key.id} at {commit.sha}", ENTRY_NOT_FOUND, headers)
    headers["ETag"] = f'"{entry.etag}"'
    if entry.lfs:
        headers["X-Linked-ETag"] = f'"{entry.sha256}"'
        headers["X-Linked-Size"] = str(entry.size)
    return FileResponse(
        hub_of(request).blobs.path(entry.sha256),
        headers=headers,
        filename=path.rsplit("/", 1)[-1],
        content_disposition_type="inline",
    )
