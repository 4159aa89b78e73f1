"""Git-LFS: where to upload content, the upload itself (in one piece or in parts), and its verification.

Uploads carry no token: the client PUTs to the URL that the batch answer gave it. So that URL holds a
signature over exactly what may be stored there.
"""

from __future__ import annotations

import hashlib
import hmac
import shutil
import uuid
from math import ceil
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .errors import HubError
from .hub import Hub, base_url, hub_of, json_body, key_of, parameter, writable
from .names import SHA256


async def batch(request: Request) -> Response:
    """Answer for each object: already stored, or the URLs for its upload."""
    writable(request)
    hub, body = hub_of(request), await json_body(request)
    if body.get("operation") != "upload":
        raise HubError(422, "local_hub serves LFS downloads by /resolve/ only; use operation 'upload'")
    may_split = "multipart" in body.get("transfers", ["basic"])
    objects = [_answer(request, hub, obj, may_split) for obj in body.get("objects", [])]
    in_parts = any("header" in obj.get("actions", {}).get("upload", {}) for obj in objects)
    return JSONResponse(
        {"transfer": "multipart" if in_parts else "basic", "objects": objects, "hash_algo": "sha256"},
        media_type="application/vnd.git-lfs+json",
    )


def _answer(request: Request, hub: Hub, obj: dict[str, Any], may_split: bool) -> dict[str, Any]:
    sha256, size = str(obj.get("oid")), obj.get("size")
    if not SHA256.fullmatch(sha256) or not isinstance(size, int) or size < 0:
        error = {"code": 422, "message": "oid must be a sha256 and size a number that is not negative"}
        return {"oid": sha256, "size": 0, "error": error}
    if hub.blobs.size(sha256) == size:
        return {"oid": sha256, "size": size}
    base = f"{base_url(request)}/_lfs/{sha256}/{size}"
    upload: dict[str, Any] = {"href": f"{base}?sign={_sign(hub, sha256, size, 'whole')}"}
    if may_split and size > hub.part_size:
        # The Hub's convention: numbered headers hold the parts' URLs, href is for reporting the end.
        upload["href"] = f"{base}/complete?sign={_sign(hub, sha256, size, 'complete')}"
        upload["header"] = {"chunk_size": str(hub.part_size)} | {
            str(part): f"{base}/part/{part}?sign={_sign(hub, sha256, size, f'part {part}')}"
            for part in range(1, ceil(size / hub.part_size) + 1)
        }
    verify = {"href": f"{base_url(request)}/{key_of(request).url_path}.git/info/lfs/objects/verify"}
    return {
        "oid": sha256,
        "size": size,
        "authenticated": True,
        "actions": {"upload": upload, "verify": verify},
    }


def _sign(hub: Hub, sha256: str, size: int, what: str) -> str:
    return hmac.new(hub.secret, f"{sha256} {size} {what}".encode(), hashlib.sha256).hexdigest()


def _announced(request: Request, what: str) -> tuple[Hub, str, int]:
    """Return hash and size of a signed upload URL."""
    hub, sha256, size = hub_of(request), parameter(request, "oid"), request.path_params["size"]
    if not hmac.compare_digest(request.query_params.get("sign", ""), _sign(hub, sha256, size, what)):
        raise HubError(403, "this upload URL is not valid (any more): start the upload again for a new one")
    return hub, sha256, size


async def put_whole(request: Request) -> Response:
    """Store an object that is uploaded in one piece."""
    hub, sha256, size = _announced(request, "whole")
    with hub.blobs.receive() as incoming:
        async for chunk in request.stream():
            incoming.write(chunk)
        incoming.finish(sha256, size)
    return Response(status_code=200)


async def put_part(request: Request) -> Response:
    """Store one part; the client repeats its ETag in the completion request."""
    number = request.path_params["part"]
    hub, sha256, size = _announced(request, f"part {number}")
    length, digest = 0, hashlib.md5(usedforsecurity=False)
    folder = hub.blobs.incoming / f"parts-{sha256}"
    folder.mkdir(exist_ok=True)
    unfinished = folder / f"{number}.{uuid.uuid4().hex}"  # two clients may send the same part
    with unfinished.open("xb") as file:
        async for chunk in request.stream():
            file.write(chunk)
            digest.update(chunk)
            length += len(chunk)
    expected = min(hub.part_size, size - (number - 1) * hub.part_size)
    if length != expected:
        unfinished.unlink()
        raise HubError(400, f"part {number} has {length} bytes instead of {expected}; send it again")
    try:
        unfinished.replace(folder / str(number))
    except FileNotFoundError:
        # Another client, or the same one again, has completed the object meanwhile.
        if hub.blobs.size(sha256) != size:
            raise
    return Response(status_code=200, headers={"ETag": f'"{digest.hexdigest()}"'})


async def complete(request: Request) -> Response:
    """Join the parts; the whole must have the announced hash."""
    hub, sha256, size = _announced(request, "complete")
    if hub.blobs.size(sha256) == size:  # another client was faster, or this is a repeated request
        return JSONResponse({"success": True})
    folder = hub.blobs.incoming / f"parts-{sha256}"
    with hub.blobs.receive() as incoming:
        for number in range(1, ceil(size / hub.part_size) + 1):
            try:
                part = (folder / str(number)).open("rb")
            except FileNotFoundError as error:
                raise HubError(400, f"part {number} of {sha256} was never uploaded") from error
            with part:
                while chunk := part.read(1024 * 1024):
                    incoming.write(chunk)
        incoming.finish(sha256, size)
    shutil.rmtree(folder, ignore_errors=True)
    return JSONResponse({"success": True})


async def verify(request: Request) -> Response:
    """Confirm that an object is stored with the size that the client sent."""
    writable(request)
    body = await json_body(request)
    sha256 = str(body.get("oid"))
    if not SHA256.fullmatch(sha256) or hub_of(request).blobs.size(sha256) != body.get("size"):
        raise HubError(404, f"object {sha256} is not stored with this size; upload it again")
    return JSONResponse({"success": True})
