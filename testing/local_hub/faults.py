"""Faults that tests order: an answer other than the real one, or a connection that is cut in the middle of a request.

    PUT /_test/faults      [{"method": "PUT", "path": "part/2", "status": 503, "times": 1}, ...]
    GET /_test/requests    [{"method": "PUT", "path": "/_lfs/...", "status": 200}, ...]

Only with the option --faults: these two requests need no token.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import HubError, error_response


@dataclass(eq=False)
class Fault:
    """One fault, for requests of a method whose path contains a match of ``path``.

    Attributes:
        method: HTTP method.
        path: Regular expression.
        status: Status of the answer; None for the real one.
        times: Number of requests; None for all.
        after: Number of requests that are answered as usual before.
        headers: Headers of the answer.
        cut_after: Bytes of the body after which the connection is cut; None for a whole answer.
        delay: Seconds before the request is handled; it is not if the client disconnects meanwhile.
        answer_delay: Seconds between the handling and the answer. Both end when a test replaces the faults.
    """

    method: str
    path: str
    status: int | None = None
    times: int | None = None
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    delay: float = 0
    answer_delay: float = 0

    def applies(self, method: str, path: str) -> bool:
        """Return whether this request has the fault, and count it."""
        if method != self.method or not re.search(self.path, path) or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Faults:
    """Outermost ASGI application of a server with --faults."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._faults: list[Fault] = []
        self._requests: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with the fault that was ordered for it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path, request = scope["raw_path"].decode("ascii"), Request(scope, receive)
        if path.startswith("/_test/"):
            response = await self._control(request)
            return await response(scope, receive, send)
        entry: dict[str, Any] = {"method": request.method, "path": path, "status": None}
        self._requests.append(entry)

        fault = next((fault for fault in self._faults if fault.applies(request.method, path)), None)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
                if fault:
                    await self._wait(receive, fault, fault.answer_delay)
            await send(message)

        if fault is None:
            return await self._app(scope, receive, counted)
        if not await self._wait(receive, fault, fault.delay):
            return None
        if fault.cut_after is not None:
            return await _cut(receive, fault.cut_after)
        if fault.status is None:
            return await self._app(scope, receive, counted)
        async for _ in request.stream():  # a client may not read an answer before it has sent its body
            pass
        refusal = HubError(fault.status, f"ordered fault {fault.status}", headers=fault.headers)
        response = await error_response(request, refusal)
        return await response(scope, receive, counted)

    async def _wait(self, receive: Receive, fault: Fault, seconds: float) -> bool:
        """Wait, unless the client disconnects or other faults are ordered; return False if it has disconnected."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and fault in self._faults and not _transport(receive).is_closing():
            await asyncio.sleep(0.02)
        if seconds and fault not in self._faults:
            await asyncio.sleep(0.2)  # the client may have ended just before the order
        return not _transport(receive).is_closing()

    async def _control(self, request: Request) -> Response:
        if request.method == "PUT":
            self._faults = [Fault(**fault) for fault in await request.json()]
            self._requests.clear()
        return JSONResponse(self._requests)


def _transport(receive: Receive) -> asyncio.Transport:
    """Return the connection of a request: uvicorn's ``receive`` is a method of the object that has it."""
    transport: asyncio.Transport = receive.__self__.transport  # type: ignore[attr-defined]
    return transport


async def _cut(receive: Receive, after: int) -> None:
    """Read some of a request's body, then reset its connection."""
    length = 0
    while length < after:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    _transport(receive).abort()
    while (await receive())["type"] != "http.disconnect":
        pass
