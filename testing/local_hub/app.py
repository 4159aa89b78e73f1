"""Table of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from . import api_commit, api_repos, api_tree, download, lfs
from .errors import HubError, error_response
from .hub import Hub, readable

_REPO = "/api/{kind}/{owner}/{name}"


async def health(request: Request) -> Response:
    """Answer that the server is up."""
    return PlainTextResponse("ok")


async def gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client ended, or was killed, while it sent its body."""
    return Response(status_code=499)


async def no_xet(request: Request) -> Response:
    """Refuse the Xet protocol, and name the setting that turns it off."""
    readable(request)
    raise HubError(400, "local_hub does not support Xet: set HF_HUB_DISABLE_XET=1 for the client")


async def not_here(request: Request) -> Response:
    """Refuse a request that no other route matches."""
    raise HubError(404, f"local_hub does not implement {request.method} {request.url.path}")


def _both_prefixes(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], methods: list[str]
) -> list[Route]:
    """Return the routes outside /api, where datasets have a prefix and models have none."""
    return [Route(path, endpoint, methods=methods), Route(f"/{{kind}}{path}", endpoint, methods=methods)]


ROUTES = [
    Route("/health", health),
    Route("/api/whoami-v2", api_repos.whoami),
    Route("/api/validate-yaml", api_repos.validate_yaml, methods=["POST"]),
    Route("/api/repos/create", api_repos.create, methods=["POST"]),
    Route("/api/repos/delete", api_repos.delete, methods=["DELETE"]),
    Route(_REPO, api_repos.info),
    Route(_REPO + "/revision/{revision}", api_repos.info),
    Route(_REPO + "/settings", api_repos.settings, methods=["PUT"]),
    Route(_REPO + "/auth-check", api_repos.auth_check),
    Route(_REPO + "/auth-check/write", api_repos.auth_check_write),
    Route(_REPO + "/tree/{revision}", api_tree.tree),
    Route(_REPO + "/tree/{revision}/{path:path}", api_tree.tree),
    Route(_REPO + "/paths-info/{revision}", api_tree.paths_info, methods=["POST"]),
    Route(_REPO + "/refs", api_tree.refs),
    Route(_REPO + "/commits/{revision}", api_tree.commits),
    Route(_REPO + "/discussions", api_tree.discussions),
    Route(_REPO + "/branch/{ref}", api_tree.create_branch, methods=["POST"]),
    Route(_REPO + "/branch/{ref}", api_tree.delete_branch, methods=["DELETE"]),
    Route(_REPO + "/tag/{ref}", api_tree.create_tag, methods=["POST"]),
    Route(_REPO + "/tag/{ref}", api_tree.delete_tag, methods=["DELETE"]),
    Route(_REPO + "/preupload/{revision}", api_commit.preupload, methods=["POST"]),
    Route(_REPO + "/commit/{revision}", api_commit.commit, methods=["POST"]),
    Route(_REPO + "/xet-write-token/{revision}", no_xet),
    Route(_REPO + "/xet-read-token/{revision}", no_xet),
    Route("/_lfs/{oid}/{size:int}", lfs.put_whole, methods=["PUT"]),
    Route("/_lfs/{oid}/{size:int}/part/{part:int}", lfs.put_part, methods=["PUT"]),
    Route("/_lfs/{oid}/{size:int}/complete", lfs.complete, methods=["POST"]),
    *_both_prefixes("/{owner}/{name}.git/info/lfs/objects/batch", lfs.batch, ["POST"]),
    *_both_prefixes("/{owner}/{name}.git/info/lfs/objects/verify", lfs.verify, ["POST"]),
    *_both_prefixes("/{owner}/{name}/resolve/{revision}/{path:path}", download.resolve, ["GET"]),
    Route("/{anything:path}", not_here, methods=["GET", "POST", "PUT", "DELETE"]),
]


class _MatchUndecodedPath:
    """Let routes see the path as it was sent, so that the revision `refs%2Fpr%2F1` stays one part of it.

    Handlers decode their own parts with hub.parameter().
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        await self._app(scope, receive, send)


def build_app(hub: Hub) -> ASGIApp:
    """Return the ASGI application for a server's state."""
    handlers = {HubError: error_response, ClientDisconnect: gone}
    app = Starlette(routes=ROUTES, exception_handlers=handlers)  # type: ignore[arg-type]
    app.state.hub = hub
    return _MatchUndecodedPath(app)
