"""Call the Jobs REST API of a Ray cluster without importing ray, which costs seconds and hundreds of MB.

aiohttp is imported where it is used: a DAG file must not cost that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from llm_bridge.exceptions import RayRequestError, RayUnavailable
from llm_bridge.remote import connections
from llm_bridge.remote.messages import RayHttpAnswer, RayHttpRequest
from llm_bridge.slurm.client import SlurmClient, open_client

if TYPE_CHECKING:
    import aiohttp

REQUEST_TIMEOUT_SECONDS = 20
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
# Without a limit Ray's state API lists 100 entries (ray/util/state/common.py).
LIST_OPTIONS = "limit=10000&timeout=10"
# Name of the actor that runs a job's entrypoint (ray/dashboard/modules/job/common.py: JOB_ACTOR_NAME_TEMPLATE).
SUPERVISOR_NAME_PREFIX = "_ray_internal_job_actor_"


@dataclass(frozen=True)
class RayTarget:
    """Location of a Ray cluster: a Slurm job of llm-bridge, or the address of any dashboard.

    Attributes:
        cluster: Name of the cluster file of the Slurm job; needs ``job_id`` and ``directory``.
        job_id: Slurm's id of the job.
        directory: Attempt directory of the Slurm job.
        address: ``http://host:port`` of a dashboard that this machine can reach.
        conn_id: Airflow connection whose password is the token for ``address``, if the dashboard requires one.
    """

    cluster: str | None = None
    job_id: str | None = None
    directory: str | None = None
    address: str | None = None
    conn_id: str | None = None

    def __post_init__(self) -> None:
        if bool(self.address) == bool(self.cluster and self.directory):
            raise ValueError(
                "give either the address of a Ray dashboard, or cluster, job_id and directory of a Slurm job"
            )

    @classmethod
    def from_output(cls, ray: Mapping[str, Any]) -> RayTarget:
        """Return the target named in an operator's output, or in ``{"address": ...}``."""
        return cls(**{name: ray[name] for name in cls.__dataclass_fields__ if name in ray})

    def to_json(self) -> dict[str, Any]:
        """Return the target as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class RayJobDetails:
    """Details of a job as Ray's Jobs API reports them (``JobDetails``).

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Ray's explanation of the status.
        error_type: Ray's ``JobErrorType`` of a failed job.
        driver_exit_code: Exit code of the entrypoint; negative for a signal.
        start_time: Epoch milliseconds.
        end_time: Epoch milliseconds.
    """

    status: str
    message: str | None = None
    error_type: str | None = None
    driver_exit_code: int | None = None
    start_time: float | None = None
    end_time: float | None = None

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> RayJobDetails:
        """Return the details in a dashboard's answer; other keys are ignored."""
        return cls(**{name: answer.get(name) for name in cls.__dataclass_fields__})  # type: ignore[arg-type]

    @property
    def has_ended(self) -> bool:
        """True if the status is a final one."""
        return self.status in ENDED


def _filter(key: str, value: str) -> str:
    """Return an equality filter of Ray's state API as part of a URL."""
    return urlencode({"filter_keys": key, "filter_predicates": "=", "filter_values": value})


# Method, path, JSON body or None -> HTTP status and text. Raises RayUnavailable.
SendRequest = Callable[[str, str, Any], Awaitable[tuple[int, str]]]


class RayClient:
    """Client of one dashboard; :func:`ray_client` makes it.

    Args:
        send: Sends one request.
        session: Streams logs; given only for a cluster that is reached by its address.
    """

    def __init__(self, send: SendRequest, session: aiohttp.ClientSession | None = None) -> None:
        self._send = send
        self._session = session

    async def submit(self, submission_id: str, entrypoint: str, **options: Any) -> bool:
        """Submit a job under an id chosen by llm-bridge.

        Ray answers a second submission of one id with HTTP 500 "... already exists", also after the job has ended.

        Args:
            submission_id: Id of the job.
            entrypoint: Shell command line.
            **options: Further fields of the Jobs API's request.

        Returns:
            False if a job with that id exists already.

        Raises:
            RayRequestError: The cluster refuses the job or the token.
            RayUnavailable: The dashboard does not answer.
        """
        body = {"submission_id": submission_id, "entrypoint": entrypoint, **options}
        status, answer = await self._call("POST", "/api/jobs/", body)
        if status == 500 and "already exists" in str(answer):
            return False
        self._expect(status, answer, f"submit job {submission_id}")
        return True

    async def job(self, submission_id: str) -> RayJobDetails | None:
        """Return the details of a job; None if Ray has no such job."""
        status, answer = await self._call("GET", f"/api/jobs/{submission_id}")
        if status == 404:
            return None
        self._expect(status, answer, f"read job {submission_id}")
        return RayJobDetails.from_answer(answer)

    async def stop(self, submission_id: str) -> None:
        """Request that a job stops; no error if it has ended or does not exist.

        A job that cannot start stays PENDING although Ray (2.60) answers that it was stopped.
        """
        status, answer = await self._call("POST", f"/api/jobs/{submission_id}/stop")
        if status != 404:
            self._expect(status, answer, f"stop job {submission_id}")

    async def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive: ``node_name``, ``resources_total`` (memory in bytes) ..."""
        path = f"/api/v0/nodes?{LIST_OPTIONS}&{_filter('state', 'ALIVE')}"
        return await self._list(path, "list the nodes")

    async def requested_resources(self, submission_id: str) -> dict[str, float]:
        """Return the resources that a job's entrypoint requests on one node; empty for none or an unknown job."""
        name = f"{SUPERVISOR_NAME_PREFIX}{submission_id}"
        path = f"/api/v0/actors?{LIST_OPTIONS}&detail=1&{_filter('name', name)}"
        actors = await self._list(path, f"read the resources that job {submission_id} requests")
        return next((dict(actor.get("required_resources") or {}) for actor in actors), {})

    async def _list(self, path: str, doing: str) -> list[dict[str, Any]]:
        status, answer = await self._call("GET", path)
        self._expect(status, answer, doing)
        entries: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return entries

    async def logs(self, submission_id: str) -> str:
        """Return the driver's whole output so far."""
        status, answer = await self._call("GET", f"/api/jobs/{submission_id}/logs")
        self._expect(status, answer, f"read the log of job {submission_id}")
        return answer.get("logs") or ""

    async def follow_logs(self, submission_id: str) -> AsyncIterator[str]:
        """Yield the driver's output from its beginning, then as it is written, until the job ends.

        Works only with a cluster that is reached by its address. A job on a cluster that is a Slurm job of llm-bridge
        leaves its output in a file.

        Raises:
            RayUnavailable: The connection broke.
        """
        import aiohttp

        assert self._session
        try:
            async with self._session.ws_connect(
                f"/api/jobs/{submission_id}/logs/tail", max_msg_size=0
            ) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RayUnavailable(f"log stream of Ray job {submission_id} interrupted: {error}") from error

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, text = await self._send(method, path, body)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    @staticmethod
    def _expect(status: int, answer: Any, doing: str) -> None:
        if status in (401, 403):
            raise RayRequestError(
                f"cannot {doing}: Ray refused the token (HTTP {status}); for a cluster given by its address, check the "
                "password of the Airflow connection conn_id"
            )
        if status >= 500:
            raise RayUnavailable(f"cannot {doing}: HTTP {status}: {str(answer)[:500]}")
        if status >= 400:
            raise RayRequestError(f"cannot {doing}: HTTP {status}: {str(answer)[:500]}")


@asynccontextmanager
async def one_connection(target: RayTarget) -> AsyncIterator[None]:
    """Keep the connection to the login node open between requests; do nothing for a cluster reached by its address."""
    if not target.cluster:
        yield
        return
    async with open_client(target.cluster):
        yield


@asynccontextmanager
async def ray_client(target: RayTarget) -> AsyncIterator[RayClient]:
    """Open a client of ``target``'s dashboard.

    Requests to a cluster that is a Slurm job of llm-bridge are sent from the login node, others to its address.
    """
    if target.cluster:
        async with open_client(target.cluster) as slurm:
            yield RayClient(_from_login_node(slurm, target))
        return
    import aiohttp

    assert target.address
    token = None
    if target.conn_id:
        token = await asyncio.to_thread(connections.secret, target.conn_id)
    # sock_read None: a log stream may be silent for an hour. Ordinary requests have their own timeout.
    async with aiohttp.ClientSession(
        base_url=target.address,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_SECONDS, sock_read=None),
    ) as session:
        yield RayClient(_by_address(session), session)


def _by_address(session: aiohttp.ClientSession) -> SendRequest:
    import aiohttp

    async def send(method: str, path: str, body: Any) -> tuple[int, str]:
        try:
            # A dashboard whose process is stopped (SIGSTOP) accepts the connection and answers nothing.
            limit = aiohttp.ClientTimeout(
                sock_connect=REQUEST_TIMEOUT_SECONDS, sock_read=REQUEST_TIMEOUT_SECONDS
            )
            async with session.request(method, path, json=body, timeout=limit) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RayUnavailable(
                f"the Ray dashboard does not answer: {error or type(error).__name__}"
            ) from error

    return send


def _from_login_node(slurm: SlurmClient, target: RayTarget) -> SendRequest:
    """Send through ``remote/login/ray_request.py``: the token stays on the cluster, and no port is forwarded."""

    async def send(method: str, path: str, body: Any) -> tuple[int, str]:
        assert target.directory
        request = RayHttpRequest(target.directory, method, path, body, REQUEST_TIMEOUT_SECONDS)
        answer: RayHttpAnswer = await slurm.call_helper(
            "ray_request", request, RayHttpAnswer, timeout=2 * REQUEST_TIMEOUT_SECONDS
        )
        if answer.unreachable:
            raise RayUnavailable(
                f"the Ray cluster of Slurm job {target.job_id} is unavailable: {answer.unreachable}"
            )
        return answer.status, answer.text

    return send
