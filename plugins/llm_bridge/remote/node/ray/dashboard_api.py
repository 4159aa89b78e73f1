"""Send the head guard's requests to Ray's dashboard."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

# A node or job, as the dashboard describes it.
Row = dict[str, Any]

# Without a proxy: cluster addresses must be reached directly, also where http_proxy is set.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
ALL_NODES = "/api/v0/nodes?limit=10000&detail=0"  # the default limit is 100 (ray/util/state/common.py)


class DashboardUnavailable(Exception):
    """The dashboard did not answer, or not as expected."""


class Dashboard:
    """The dashboard of one cluster.

    Args:
        url: Its address, ``http://IP:PORT``.
        token: The cluster's token.
        timeout: Limit of each request in seconds.
    """

    def __init__(self, url: str, token: str, timeout: float = 5.0) -> None:
        self.url, self.token, self.timeout = url, token, timeout

    def status(self, path: str, token: str | None = None) -> int:
        """Return the HTTP status of a GET, sent without a token unless one is given."""
        return self._get(path, token)[0]

    def check_gcs(self) -> None:
        """Check the health of the GCS.

        Raises:
            DashboardUnavailable: It is unhealthy, or the dashboard does not answer.
        """
        status, body = self._get("/api/gcs_healthz", None)
        if status != 200:
            raise DashboardUnavailable(f"HTTP {status}: {body[:200].decode(errors='replace')}")

    def nodes(self) -> list[Row]:
        """Return all nodes that the GCS lists, including dead ones."""
        nodes: list[Row] = self._json(ALL_NODES)["data"]["result"]["result"]
        return nodes

    def jobs(self) -> list[Row]:
        """Return all jobs: submitted ones, and drivers that connected by themselves."""
        jobs: list[Row] = self._json("/api/jobs/")
        return jobs

    def _json(self, path: str) -> Any:
        status, body = self._get(path, self.token)
        if status != 200:
            raise DashboardUnavailable(f"HTTP {status} for {path}: {body[:200].decode(errors='replace')}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise DashboardUnavailable(f"{path} returned no JSON: {error}") from error

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
            raise DashboardUnavailable(str(error)) from error
