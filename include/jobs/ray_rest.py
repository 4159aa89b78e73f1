"""The few requests to Ray's dashboard that the guard makes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

# Cluster addresses are reached directly, whatever http_proxy says.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
ALL_NODES = "/api/v0/nodes?limit=10000&detail=0"  # 100 without a limit (ray/util/state/common.py)


class NoAnswer(Exception):
    """The dashboard did not answer, or not with what was asked for."""


class Dashboard:
    """The dashboard of one cluster."""

    def __init__(self, url: str, token: str, timeout: float = 5.0) -> None:
        self.url, self.token, self.timeout = url, token, timeout

    def status(self, path: str, token: str | None = None) -> int:
        """HTTP status of a GET, sent without a token unless one is given."""
        return self._get(path, token)[0]

    def check_gcs(self) -> None:
        """Raises NoAnswer unless the GCS is healthy."""
        status, body = self._get("/api/gcs_healthz", None)
        if status != 200:
            raise NoAnswer(f"HTTP {status}: {body[:200].decode(errors='replace')}")

    def nodes(self) -> list[dict]:
        """All nodes that the GCS knows, dead ones too."""
        return self._json(ALL_NODES)["data"]["result"]["result"]

    def jobs(self) -> list[dict]:
        """All jobs: submitted ones and drivers that connected on their own."""
        return self._json("/api/jobs/")

    def _json(self, path: str) -> Any:
        status, body = self._get(path, self.token)
        if status != 200:
            raise NoAnswer(f"HTTP {status} for {path}: {body[:200].decode(errors='replace')}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise NoAnswer(f"{path} gave no JSON: {error}") from error

    def _get(self, path: str, token: str | None) -> tuple[int, bytes]:
        request = urllib.request.Request(self.url + path)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with _open(request, timeout=self.timeout) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, ValueError) as error:  # refused, reset, timed out, not HTTP
            raise NoAnswer(str(error)) from error
