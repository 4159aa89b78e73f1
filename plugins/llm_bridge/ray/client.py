"""The Jobs REST API of a Ray cluster, without importing ray (which costs seconds and hundreds of MB)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
from airflow.sdk import BaseHook

from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.transport import connect

ANSWER_SECONDS = 20
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
# Ray's state API lists 100 without a limit (ray/util/state/common.py).
LIMIT = "limit=10000&timeout=10"
# The actor that runs a job's entrypoint (ray/dashboard/modules/job/common.py: JOB_ACTOR_NAME_TEMPLATE).
SUPERVISOR = "_ray_internal_job_actor_"


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


def _filter(key: str, value: str) -> str:
    """One condition of Ray's state API, as part of a URL."""
    return urlencode({"filter_keys": key, "filter_predicates": "=", "filter_values": value})


# Method, path, JSON body or None -> HTTP status and text. Raises RayUnreachable.
Ask = Callable[[str, str, Any], Awaitable[tuple[int, str]]]


class RayClient:
    """One dashboard. Made by :func:`ray_client`.

    :param ask: sends one request.
    :param session: for the log of a cluster that is not ours, which is streamed.
    """

    def __init__(self, ask: Ask, session: aiohttp.ClientSession | None = None) -> None:
        self._ask = ask
        self._session = session

    async def submit(self, submission_id: str, entrypoint: str, **options: Any) -> bool:
        """Submit a job under an id of our own; False if that id exists already.

        Ray answers a second submission of one id with HTTP 500 "... already exists", also after the job's end.
        """
        body = {"submission_id": submission_id, "entrypoint": entrypoint, **options}
        status, answer = await self._call("POST", "/api/jobs/", body)
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
        """Ask a job to stop; one that has ended, or does not exist, is no error.

        A job that cannot start stays PENDING, though Ray (2.60) says that it was stopped.
        """
        status, answer = await self._call("POST", f"/api/jobs/{submission_id}/stop")
        if status != 404:
            self._expect(status, answer, f"stop job {submission_id}")

    async def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive: ``node_name``, ``resources_total`` (memory in bytes) ..."""
        return await self._list(f"/api/v0/nodes?{LIMIT}&{_filter('state', 'ALIVE')}", "list the nodes")

    async def asked_for(self, submission_id: str) -> dict[str, float]:
        """The resources that a job's entrypoint wants on one node; empty where it wants none, or is not known."""
        name = f"{SUPERVISOR}{submission_id}"
        path = f"/api/v0/actors?{LIMIT}&detail=1&{_filter('name', name)}"
        actors = await self._list(path, f"read what job {submission_id} asks for")
        return next((dict(actor.get("required_resources") or {}) for actor in actors), {})

    async def _list(self, path: str, doing: str) -> list[dict[str, Any]]:
        status, answer = await self._call("GET", path)
        self._expect(status, answer, doing)
        return answer["data"]["result"]["result"]

    async def logs(self, submission_id: str) -> str:
        """The driver's whole output so far."""
        status, answer = await self._call("GET", f"/api/jobs/{submission_id}/logs")
        self._expect(status, answer, f"read the log of job {submission_id}")
        return answer.get("logs") or ""

    async def follow_logs(self, submission_id: str) -> AsyncIterator[str]:
        """The driver's output from its beginning, then as it is written; ends with the job.

        Only of a cluster that is reached by its address; a job on a cluster of ours leaves its output in a file.
        """
        assert self._session
        try:
            async with self._session.ws_connect(
                f"/api/jobs/{submission_id}/logs/tail", max_msg_size=0
            ) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RayUnreachable(f"the log of Ray job {submission_id} broke off: {error}") from error

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, text = await self._ask(method, path, body)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

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
    """A client of ``target``'s dashboard: from the login node where it is a Slurm job of ours, else by its address."""
    if target.cluster:
        cluster = await asyncio.to_thread(load_cluster, target.cluster)
        async with connect(cluster) as transport:
            yield RayClient(_from_login_node(SlurmClient(cluster, transport), target))
        return
    assert target.address
    token = None
    if target.conn_id:
        token = (await asyncio.to_thread(BaseHook.get_connection, target.conn_id)).password
    # sock_read None: a log that is silent for an hour is no error. Ordinary calls have a limit of their own.
    async with aiohttp.ClientSession(
        base_url=target.address,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_SECONDS, sock_read=None),
    ) as session:
        yield RayClient(_by_address(session), session)


def _by_address(session: aiohttp.ClientSession) -> Ask:
    async def ask(method: str, path: str, body: Any) -> tuple[int, str]:
        try:
            # A dashboard that is stopped takes the connection, and answers nothing.
            limit = aiohttp.ClientTimeout(sock_connect=ANSWER_SECONDS, sock_read=ANSWER_SECONDS)
            async with session.request(method, path, json=body, timeout=limit) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RayUnreachable(
                f"Ray's dashboard does not answer: {error or type(error).__name__}"
            ) from error

    return ask


def _from_login_node(slurm: SlurmClient, target: RayTarget) -> Ask:
    """Through ``include/login/ray_http.py``: the token stays on the cluster, and no port is forwarded."""

    async def ask(method: str, path: str, body: Any) -> tuple[int, str]:
        request = {
            "directory": target.directory,
            "method": method,
            "path": path,
            "body": body,
            "seconds": ANSWER_SECONDS,
        }
        answer = await slurm.ask("ray_http", request, timeout=2 * ANSWER_SECONDS)
        if "unreachable" in answer:
            raise RayUnreachable(f"the Ray cluster of Slurm job {target.job_id}: {answer['unreachable']}")
        return answer["status"], answer["text"]

    return ask
