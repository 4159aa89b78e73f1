"""How rows of squeue and sacct are read."""

from __future__ import annotations

import pytest

from llm_bridge.slurm.info import from_outcome, from_sacct, from_squeue
from llm_bridge.slurm.states import Phase


@pytest.mark.parametrize(
    ("code", "expected"), [("768", (3, 0)), ("9", (0, 9)), ("3:0", (3, 0)), ("N/A", (0, 0))]
)
def test_an_exit_code_is_read_in_every_form_that_squeue_has(code: str, expected: tuple[int, int]) -> None:
    row = (
        f"12|FAILED|NonZeroExitCode|n1|{code}|2026-11-23T08:30:24|2026-11-23T08:30:26|2026-11-23T08:30:36|1|"
    )
    job_id, info = from_squeue(row)
    assert job_id == "12" and (info.exit_code, info.signal) == expected
    assert (info.queue_seconds, info.run_seconds, info.restarts) == (2, 10, 1)


def test_a_waiting_job_has_run_for_no_time() -> None:
    _, info = from_squeue("3|PENDING|BeginTime||0|2026-11-23T08:30:24|2026-11-23T09:30:24|N/A|0|")
    assert info.phase is Phase.WAITING and info.run_seconds == 0 and info.reason == "BeginTime"


def test_sacct_names_who_cancelled_a_job() -> None:
    row = "7|CANCELLED by 1001|None|n1|0:15|2026-11-23T08:30:24|2026-11-23T08:30:24|2026-11-23T08:31:24"
    _, info = from_sacct(row)
    assert info.phase is Phase.ENDED and not info.meaning.good and info.signal == 15


@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETED"), (143, "FAILED")])
def test_a_job_that_slurm_has_forgotten_is_judged_by_what_it_left(code: int, state: str) -> None:
    assert from_outcome("5", {"exit_code": code, "ended": 1.0}).state == state


def test_a_job_that_runs_elsewhere_is_not_this_attempts() -> None:
    row = "12|RUNNING|None|n1|0|2026-11-23T08:30:24|2026-11-23T08:30:26|N/A|0|/w/d/r/t/attempt-1|"
    _, info = from_squeue(row)
    assert info.is_of("/w/d/r/t/attempt-1") and not info.is_of("/w/d/r/t/attempt-2")
    assert from_outcome("12", {"exit_code": 0, "ended": 1.0}).is_of("/w/d/r/t/attempt-2")
