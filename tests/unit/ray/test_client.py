"""Client of the Jobs API."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from llm_bridge.exceptions import RayRequestError, RayUnavailable
from llm_bridge.ray.client import RayClient, RayJobDetails, RayTarget, ray_client


async def test_a_dashboard_that_accepts_the_connection_and_does_not_answer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For example one whose process is stopped: without a timeout the task would wait for ever."""
    monkeypatch.setattr("llm_bridge.ray.client.REQUEST_TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        async with ray_client(RayTarget(address=address)) as client:
            with pytest.raises(RayUnavailable, match="does not answer"):
                await client.job("any")
        assert time.monotonic() - began < 15


def client(*answers: tuple[int, Any]) -> tuple[RayClient, list[tuple[str, str, Any]]]:
    """Return a client with these answers, and the list of its requests."""
    requests: list[tuple[str, str, Any]] = []

    async def send(method: str, path: str, body: Any) -> tuple[int, str]:
        requests.append((method, path, body))
        status, answer = answers[len(requests) - 1]
        return status, answer if isinstance(answer, str) else json.dumps(answer)

    return RayClient(send), requests


async def test_a_second_submission_of_an_id_finds_the_job() -> None:
    """Ray answers it with HTTP 500, as it answers errors of its own."""
    ray, requests = client((200, {}), (500, "Job with submission_id j already exists"), (500, "out of disk"))
    assert await ray.submit("j", "true", metadata={"a": "b"})
    assert not await ray.submit("j", "true")
    with pytest.raises(RayUnavailable, match="cannot submit job j: HTTP 500: out of disk"):
        await ray.submit("j", "true")
    body = {"submission_id": "j", "entrypoint": "true", "metadata": {"a": "b"}}
    assert requests[0] == ("POST", "/api/jobs/", body)


async def test_an_unknown_job_has_no_details_and_stopping_it_is_no_error() -> None:
    ray, _ = client((404, "no such job"), (404, "no such job"))
    assert await ray.job("j") is None
    await ray.stop("j")


async def test_details_of_a_newer_ray_are_read() -> None:
    ray, _ = client((200, {"status": "FAILED", "driver_exit_code": 3, "new": 1}))
    job = await ray.job("j")
    assert job == RayJobDetails("FAILED", driver_exit_code=3) and job.has_ended


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, RayRequestError, "Ray refused the token"),
        (403, RayRequestError, "Ray refused the token"),
        (400, RayRequestError, "HTTP 400"),
        (502, RayUnavailable, "HTTP 502"),
    ],
)
async def test_an_error_says_what_was_requested(status: int, error: type[Exception], message: str) -> None:
    ray, _ = client((status, "x"))
    with pytest.raises(error, match=f"cannot read job j: .*{message}"):
        await ray.job("j")


async def test_the_requested_resources_are_those_of_the_jobs_supervisor() -> None:
    actors = {"data": {"result": {"result": [{"required_resources": {"GPU": 2.0}}]}}}
    ray, requests = client((200, actors), (200, {"data": {"result": {"result": []}}}))
    assert await ray.requested_resources("j") == {"GPU": 2.0}
    assert await ray.requested_resources("k") == {}
    assert "filter_values=_ray_internal_job_actor_j" in requests[0][1]


def test_a_target_is_either_an_address_or_a_slurm_job() -> None:
    job = RayTarget(cluster="local", job_id="7", directory="/w/a")
    assert RayTarget.from_output({**job.to_json(), "result": {}}) == job
    for wrong in ({}, {"cluster": "local"}, {**job.to_json(), "address": "http://x"}):
        with pytest.raises(ValueError, match="give either the address"):
            RayTarget.from_output(wrong)
