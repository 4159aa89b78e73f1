"""Location of a Ray cluster in an operator's output, and the end of a stopped job."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.ray import submission
from llm_bridge.ray.client import RayJobDetails, RayTarget
from llm_bridge.ray.spec import RayJob
from llm_bridge.ray.submission import RayCluster, ray_job_fingerprint, stop_and_wait


class Jobs:
    """Client whose job has these states, one for each poll; the last one stays."""

    def __init__(self, *states: str | None) -> None:
        self.states = list(states)
        self.stops = 0

    async def job(self, submission_id: str) -> RayJobDetails | None:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return RayJobDetails(state) if state else None

    async def stop(self, submission_id: str) -> None:
        self.stops += 1


@pytest.mark.parametrize(
    ("states", "ended", "stops"),
    [
        ([None], True, 0),
        (["FAILED"], True, 0),
        (["RUNNING", "RUNNING", "STOPPED"], True, 1),
        (["RUNNING"], False, 1),
        (["PENDING"], True, 1),
    ],
    ids=["unknown to Ray", "ended before", "stops", "does not stop", "could never start"],
)
async def test_a_stopped_job_counts_as_ended_once_nothing_of_it_runs(
    monkeypatch: pytest.MonkeyPatch, states: list[Any], ended: bool, stops: int
) -> None:
    monkeypatch.setattr(submission, "STOP_POLL_INTERVAL_SECONDS", 0.01)
    jobs = Jobs(*states)
    assert await stop_and_wait(jobs, "j", 0.1) is ended  # type: ignore[arg-type]
    assert jobs.stops == stops


def test_a_cluster_is_found_in_an_operators_output_and_by_address() -> None:
    target = RayTarget(cluster="local", job_id="7", directory="/w/c")
    output = {**target.to_json(), "result": {"python": "/env/bin/python", "dashboard": "http://n1:8265"}}
    assert RayCluster.from_output(output) == RayCluster(target, "/env/bin/python", "http://n1:8265")
    address = RayCluster.from_output({"address": "http://x:8265"})
    assert (address.python, address.dashboard) == (None, "http://x:8265")


def test_the_fingerprint_depends_on_command_and_settings() -> None:
    jobs = [
        RayJob(entrypoint=["a", "b"]),
        RayJob(entrypoint=["a b"]),
        RayJob(program="ppo", directory="/w"),
        RayJob(program="ppo", directory="/w", settings={"lr": 1}),
    ]
    assert len({ray_job_fingerprint(job) for job in jobs}) == len(jobs)
    assert ray_job_fingerprint(jobs[0]) == ray_job_fingerprint(RayJob(entrypoint=["a", "b"]))
