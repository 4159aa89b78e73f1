"""The Jobs REST API of a Ray cluster, without importing ray (which costs seconds and hundreds of MB)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.transport import CommandFailed, connect

ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


class RayUnreachable(ConnectionError):
    """The dashboard did not answer. Says nothing about any job."""


class RayRefused(RuntimeError):
    """The dashboard answered with an error that a retry will not mend."""


@dataclass(frozen=True)
class RayTarget:
    """Where a Ray cluster is: a Slurm job of ours, or the address of any dashboard.

    :param cluster: cluster file of the Slurm job; with ``job_id`` and its attempt's ``directory``.
    :param address: ``http://host:port`` of a dashboard that this machine reaches.
    :param conn_id: Airflow connection whose password is the token for ``address``, if it wants one.
    """

    cluster: str | None = None
    job_id: str | None = None
    directory: str | None = None
    address: str | None = None
    conn_id: str | None = None

    def __post_init__(self) -> None:
        if bool(self.address) == bool(self.cluster and self.directory):
            raise ValueError(
                "give either a Ray dashboard's address, or cluster, job_id and directory of a Slurm job"
            )


def as_target(ray: RayTarget | dict[str, Any]) -> dict[str, Any]:
    """A target as a dict: of what an operator returned, or of ``{"address": ...}``."""
    if isinstance(ray, RayTarget):
        return asdict(ray)
    return asdict(RayTarget(**{name: ray[name] for name in RayTarget.__dataclass_fields__ if name in ray}))


class RayClient:
    """One dashboard. Made by :func:`ray_client`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def submit(self, submission_id: str, entrypoint: str, **options: Any) -> bool:
        """Submit a job under an id of our own; False if that id exists already.

        Ray answers a second submission of one id with HTTP 500 "... already exists", also after the job's end.
        """
        body = {"submission_id": submission_id, "entrypoint": entrypoint, **options}
        status, answer = await self._call("POST", "/api/jobs/", json=body)
        if status == 500 and "already exists" in str(answer):
            return False
        self._expect(status, answer, f"submit job {submission_id}")
        return True

    async def job(self, submission_id: str) -> dict[str, Any] | None:
        """Status, ``driver_exit_code``, ``error_type``, ``message`` ...; None if there is no such job."""
        status, answer = await self._call("GET", f"/api/jobs/{submission_id}")
        if status == 404:
            return None
        self._expect(status, answer, f"read job {submission_id}")
        return answer

    async def stop(self, submission_id: str) -> None:
        """Ask a job to stop; one that has ended, or does not exist, is no error."""
        status, answer = await self._call("POST", f"/api/jobs/{submission_id}/stop")
        if status != 404:
            self._expect(status, answer, f"stop job {submission_id}")

    async def logs(self, submission_id: str) -> str:
        """The driver's whole output so far."""
        status, answer = await self._call("GET", f"/api/jobs/{submission_id}/logs")
        self._expect(status, answer, f"read the log of job {submission_id}")
        return answer.get("logs") or ""

    async def follow_logs(self, submission_id: str) -> AsyncIterator[str]:
        """The driver's output from its beginning, then as it is written; ends with the job."""
        try:
            async with self._session.ws_connect(
                f"/api/jobs/{submission_id}/logs/tail", max_msg_size=0
            ) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RayUnreachable(f"the log of Ray job {submission_id} broke off: {error}") from error

    async def _call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        try:
            async with self._session.request(method, path, **options) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RayUnreachable(
                f"Ray's dashboard does not answer: {error or type(error).__name__}"
            ) from error
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    @staticmethod
    def _expect(status: int, answer: Any, doing: str) -> None:
        if status in (401, 403):
            raise RayRefused(f"cannot {doing}: Ray refused the token (HTTP {status})")
        if status >= 500:
            raise RayUnreachable(f"cannot {doing}: HTTP {status}: {str(answer)[:500]}")
        if status >= 400:
            raise RayRefused(f"cannot {doing}: HTTP {status}: {str(answer)[:500]}")


@asynccontextmanager
async def ray_client(target: RayTarget) -> AsyncIterator[RayClient]:
    """A client of ``target``'s dashboard, through the cluster's SSH connection where it is a Slurm job.

    :raises RayUnreachable: the cluster never became ready, so there is no address.
    """
    if target.address:
        from airflow.sdk import BaseHook

        token = (
            (await asyncio.to_thread(BaseHook.get_connection, target.conn_id)).password
            if target.conn_id
            else None
        )
        async with _session(target.address, token) as client:
            yield client
        return
    assert target.cluster
    cluster = await asyncio.to_thread(load_cluster, target.cluster)
    async with connect(cluster) as transport:
        slurm = SlurmClient(cluster, transport)
        try:
            dashboard = json.loads(await slurm.read(f"{target.directory}/cluster.json"))["dashboard"]
            token = (await slurm.read(f"{target.directory}/ray_token")).strip()
        except CommandFailed as error:
            raise RayUnreachable(
                f"the Ray cluster of Slurm job {target.job_id} has no address: {error}"
            ) from error
        where = urlsplit(dashboard)
        async with (
            transport.forward(where.hostname or "", where.port or 80) as (host, port),
            _session(f"http://{host}:{port}", token) as client,
        ):
            yield client


@asynccontextmanager
async def _session(address: str, token: str | None) -> AsyncIterator[RayClient]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # sock_read None: a log that is silent for an hour is no error; total bounds connect and ordinary calls.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=None)
    async with aiohttp.ClientSession(base_url=address, headers=headers, timeout=timeout) as session:
        yield RayClient(session)
