"""The helper `list_attempts`: the jobs of a stage, and attempts that get no job any more."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Owner
from llm_bridge.remote.login import list_attempts
from llm_bridge.remote.messages import AttemptsAnswer, AttemptsRequest, decode, encode


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage with a job in attempts 2 and 10, and attempt 1 without one."""
    stage = tmp_path / "stage [1]"
    for number, job_id in ((10, "30"), (2, "20"), (1, None)):
        attempt = stage / attempt_dir.attempt_name(number)
        owner = Owner("d", "r", "t", -1, f"llmb-{number}", "1")
        attempt_dir.write_json(str(attempt / attempt_dir.OWNER), owner)
        attempt_dir.write(str(attempt / attempt_dir.SECRETS / "hub"), "hf_x")
        if job_id:
            attempt_dir.write(str(attempt / attempt_dir.JOB_ID), job_id)
    return stage


def run(stage: Path, close: bool) -> AttemptsAnswer:
    request = AttemptsRequest(str(stage), close)
    answer: AttemptsAnswer = decode(AttemptsAnswer, list_attempts.main(encode(request)))
    return answer


def test_attempts_with_a_job_are_listed_oldest_first_without_asking_slurm(stage: Path, slurm: Any) -> None:
    jobs = run(stage, close=False).jobs
    assert jobs == [("20", f"{stage}/attempt-2"), ("30", f"{stage}/attempt-10")]
    assert not slurm.calls("squeue")
    assert (stage / "attempt-1" / attempt_dir.SECRETS).exists()


def test_closing_marks_every_attempt_and_removes_its_secrets(stage: Path, slurm: Any) -> None:
    assert [job.job_id for job in run(stage, close=True).jobs] == ["20", "30"]
    for attempt in stage.iterdir():
        assert (attempt / attempt_dir.CLOSED).exists()
        assert not (attempt / attempt_dir.SECRETS).exists()


def test_closing_finds_a_job_that_only_slurm_knows(stage: Path, slurm: Any) -> None:
    slurm.set("squeue", "12|None|llmb-1\n")
    assert [job.job_id for job in run(stage, close=True).jobs] == ["12", "20", "30"]
    assert attempt_dir.job_of(str(stage / "attempt-1")) == "12"


def test_an_attempt_is_not_closed_while_slurm_does_not_answer(stage: Path, slurm: Any) -> None:
    slurm.set("squeue", code=1, errors="Unable to contact slurm controller")
    assert run(stage, close=True) == ([], "Unable to contact slurm controller")
    assert not (stage / "attempt-1" / attempt_dir.CLOSED).exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_the_jobs_of_a_workspace_that_cannot_be_written_are_returned_to_be_cancelled(
    stage: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(path: str, text: str) -> None:
        raise OSError(number, os.strerror(number), path)

    slurm.set("squeue", "12|None|llmb-1\n")
    monkeypatch.setattr(attempt_dir, "write", full)
    assert [job.job_id for job in run(stage, close=True).jobs] == ["12", "20", "30"]


def test_another_error_of_the_file_system_keeps_the_attempts_open(
    stage: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: str, text: str) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", path)

    monkeypatch.setattr(attempt_dir, "write", stale)
    assert "Stale file handle" in run(stage, close=True).error
