"""Events of a Slurm job, which Airflow's database keeps as JSON."""

from __future__ import annotations

import json

import pytest

from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.slurm.events import EndReason, HangReport, SlurmJobEvent
from llm_bridge.slurm.status import JobInfo

COMPLETED = JobInfo("7", "COMPLETED")
EVENT = SlurmJobEvent("7", "here", "/w/attempt-1", EndReason.ENDED, COMPLETED)


def transferred(event: SlurmJobEvent) -> SlurmJobEvent:
    return SlurmJobEvent.from_json(json.loads(json.dumps(event.to_json())))


def test_an_event_survives_airflows_database() -> None:
    full = SlurmJobEvent(
        "7",
        "here",
        "/w/attempt-1",
        EndReason.HUNG,
        JobInfo("7", "CANCELLED", nodes="n[1-2]", signal=15),
        notice="hang",
        ready_file="x.json",
        cancelled=True,
        result={"rows": 3},
        reason=Reason("no space", retry=False, kind="disk_full", nodes=("n1",)),
        last_lines=("a", "b"),
        hang=HangReport("30 min", "n[1-2]", "step 3", ("n1: stack",), ended=True),
    )
    assert transferred(full) == full
    assert transferred(EVENT) == EVENT


@pytest.mark.parametrize(
    ("end", "info", "ready_file", "succeeded"),
    [
        (EndReason.ENDED, COMPLETED, None, True),
        (EndReason.ENDED, JobInfo("7", "FAILED"), None, False),
        (EndReason.READY, JobInfo("7", "RUNNING"), "cluster", True),
        (EndReason.ENDED, COMPLETED, "cluster", False),
        (EndReason.FORGOTTEN, None, None, False),
    ],
)
def test_a_job_has_succeeded_if_it_is_ready_or_ended_well_without_a_ready_file(
    end: EndReason, info: JobInfo | None, ready_file: str | None, succeeded: bool
) -> None:
    event = SlurmJobEvent("7", "here", "/w/attempt-1", end, info, ready_file=ready_file)
    assert event.succeeded is succeeded


def test_the_notice_of_a_hang_has_its_duration_and_the_last_step() -> None:
    assert HangReport("30 min").notice == "hang: no output and no new step for 30 min"
    assert HangReport("30 min", step="step 3").notice.endswith("for 30 min, after step 3")
