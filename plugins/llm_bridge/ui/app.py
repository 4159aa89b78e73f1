"""ASGI application of the run page, which is built at its first request.

Every component of Airflow imports the plugin; only the API server serves the page, and has the modules that it needs.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

PREFIX = "/llm-bridge"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class RunPage:
    """The run page as an ASGI application."""

    def __init__(self) -> None:
        self._app: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self._lock:
            if self._app is None:
                from llm_bridge.ui.routes import create_app

                self._app = create_app()
        await self._app(scope, receive, send)
