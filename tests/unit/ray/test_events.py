"""The event of a Ray job on its way through Airflow's database."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llm_bridge.ray.client import RayJobDetails, RayTarget
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.remote.attempt_dir import Outcome, Reason
from llm_bridge.slurm.events import HangReport
from llm_bridge.slurm.status import JobInfo

BARE = RayJobEvent(
    RayEndReason.LOST, target=RayTarget(address="http://ray.example.org:8265"), submission_id="j"
)
FULL = RayJobEvent(
    RayEndReason.ALLOCATION_ENDED,
    notice="Slurm has lost job 7",
    job=RayJobDetails("FAILED", "m", "JOB_SUPERVISOR_ACTOR_DIED", -9, 1000.0, 2000.0),
    info=JobInfo("7", "NODE_FAIL", nodes="n[1-2]"),
    forgotten=True,
    cause="(n2 is DOWN)",
    outcome=Outcome(137, 2.0, 1.0, 1),
    result={"steps": [1, 2]},
    reason=Reason("worker n2 died", retry=False, kind="worker_dead", nodes=("n2",)),
    last_lines=("step:1", "step:2"),
    hang=HangReport("30 min", "n[1-2]", "step 41", ("n1: frame 0",), ended=True),
    target=RayTarget(cluster="local", job_id="7", directory="/w/cluster/attempt-1"),
    submission_id="j",
    directory="/w/ppo/ray-1",
    own_cluster=True,
)


@pytest.mark.parametrize("event", [BARE, FULL], ids=["bare", "full"])
def test_an_event_is_the_same_after_its_way_through_json(event: RayJobEvent) -> None:
    assert RayJobEvent.from_json(json.loads(json.dumps(event.to_json()))) == event


def test_only_an_ended_allocation_means_a_lost_cluster() -> None:
    assert [end for end in RayEndReason if replace(BARE, end=end).lost_cluster] == [
        RayEndReason.ALLOCATION_ENDED
    ]
