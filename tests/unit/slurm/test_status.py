"""States of jobs, as squeue and outcome files report them."""

from __future__ import annotations

import pytest

from llm_bridge.exceptions import ConfigError
from llm_bridge.remote.attempt_dir import Outcome, Started
from llm_bridge.sensors.slurm import SlurmJobSensor
from llm_bridge.slurm.status import (
    JobInfo,
    Phase,
    from_outcome,
    from_squeue,
    is_job_id,
    prefer_job_outcome,
    state_of,
    succeeded,
)


@pytest.mark.parametrize(
    ("code", "expected"), [("768", (3, 0)), ("9", (0, 9)), ("3:0", (3, 0)), ("N/A", (0, 0))]
)
def test_an_exit_code_is_read_in_every_form_of_squeue(code: str, expected: tuple[int, int]) -> None:
    row = (
        f"12|FAILED|NonZeroExitCode|n1|{code}|2026-11-23T08:30:24|2026-11-23T08:30:26|2026-11-23T08:30:36|1|"
    )
    job_id, info = from_squeue(row)
    assert job_id == "12" and (info.exit_code, info.signal) == expected
    assert (info.queue_seconds, info.run_seconds, info.restarts) == (2, 10, 1)


def test_a_pending_job_has_no_run_time() -> None:
    _, info = from_squeue("3|PENDING|BeginTime||0|2026-11-23T08:30:24|2026-11-23T09:30:24|N/A|0|")
    assert info.phase is Phase.WAITING and info.run_seconds == 0 and info.reason == "BeginTime"


@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETED"), (143, "FAILED")])
def test_a_job_that_slurm_has_forgotten_is_judged_by_its_outcome_file(code: int, state: str) -> None:
    info = from_outcome("5", Outcome(exit_code=code, ended=3.0, started=1.0))
    assert (info.state, info.exit_code, info.run_seconds) == (state, code, 2)


def test_a_job_in_another_directory_is_not_this_attempts() -> None:
    row = "12|RUNNING|None|n1|0|2026-11-23T08:30:24|2026-11-23T08:30:26|N/A|0|/w/d/r/t/attempt-1|"
    _, info = from_squeue(row)
    assert info.belongs_to("/w/d/r/t/attempt-1") and not info.belongs_to("/w/d/r/t/attempt-2")
    assert from_outcome("12", Outcome(exit_code=0, ended=1.0)).belongs_to("/w/d/r/t/attempt-2")


def test_a_state_is_found_in_every_form_of_sacct_and_an_unknown_one_is_never_an_end() -> None:
    assert state_of("CANCELLED by 1001") == state_of("CANCELLED+") == state_of("cancelled")
    assert state_of("NEW_STATE").phase is Phase.UNKNOWN


def test_completed_work_counts_whatever_happened_to_the_job_afterwards() -> None:
    done, failed = Outcome(exit_code=0, ended=1.0), Outcome(exit_code=1, ended=1.0)
    lost = JobInfo("7", "NODE_FAIL", exit_code=1, signal=9)
    assert prefer_job_outcome(lost, done).state == "COMPLETED"
    assert prefer_job_outcome(JobInfo("7", "CANCELLED by 1001"), done).meaning.good
    assert prefer_job_outcome(lost, failed) == prefer_job_outcome(lost, None) == lost
    assert prefer_job_outcome(JobInfo("7", "OUT_OF_MEMORY"), done).meaning.good, (
        "of a process that was not needed"
    )


def test_a_job_that_slurm_still_ends_has_completed_its_work_if_it_wrote_exit_code_0() -> None:
    ending = JobInfo("7", "COMPLETING", submitted=10, started=20, ended=9999)
    started = Started("7", 1020.0, "n1")
    info = prefer_job_outcome(ending, Outcome(exit_code=0, ended=1025.0), started)
    assert (info.state, info.queue_seconds, info.run_seconds) == ("COMPLETED", 10, 5)
    assert prefer_job_outcome(ending, Outcome(exit_code=0, ended=1025.0)).run_seconds == 0


def test_the_end_of_a_job_that_slurm_was_not_asked_about_is_in_its_own_files() -> None:
    done, started = Outcome(exit_code=0, ended=1025.0, restarts=2), Started("7", 1020.0, "n[1-2]")
    info = succeeded("7", done, started, submitted=1010.0)
    assert (info.state, info.nodes, info.restarts) == ("COMPLETED", "n[1-2]", 2)
    assert (info.queue_seconds, info.run_seconds) == (10, 5)
    assert succeeded("7", done, started, submitted=1030.0).queue_seconds == 0, "clocks differ"
    unknown = succeeded("7", done, started)
    assert (unknown.queue_seconds, unknown.submitted, unknown.run_seconds) == (0, 0, 5)
    assert succeeded("7", done, None).run_seconds == 0


@pytest.mark.parametrize("value", ["", "0", "1,2", "1.0", "12;cluster", "2147483648", "\uff11", None, 12])
def test_a_value_that_slurms_commands_refuse_is_no_job_id(value: object) -> None:
    assert not is_job_id(value)


def test_every_number_up_to_slurms_largest_is_a_job_id() -> None:
    assert is_job_id("1") and is_job_id("2147483647")


def test_a_sensor_refuses_a_job_id_that_is_none() -> None:
    submitted = {"cluster": "local", "job_id": "Welcome\n12", "directory": "/w/attempt-1"}
    with pytest.raises(ConfigError, match="a job id is a whole number"):
        SlurmJobSensor(task_id="s", submitted=submitted).execute({})  # type: ignore[typeddict-item]
