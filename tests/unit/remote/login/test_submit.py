"""The helper `submit`: one job per attempt, whatever happens in between."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir, messages
from llm_bridge.remote.attempt_dir import Owner
from llm_bridge.remote.login import submit
from llm_bridge.remote.messages import StageRequest, SubmitAnswer, SubmitRequest, decode, encode

OWNER = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1}
KEY = "llmb-t-1"


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    return tmp_path / "stage" / attempt_dir.attempt_name(1)


def request(attempt: Path, **changes: Any) -> SubmitRequest:
    values: dict[str, Any] = {
        "key": KEY,
        "files": {attempt_dir.SCRIPT: "#!/bin/sh\n"},
        "secrets": {"hub": "hf_x"},
        "owner": OWNER,
        "version": "1",
    }
    return SubmitRequest(str(attempt), **(values | changes))


def run(wanted: SubmitRequest) -> SubmitAnswer:
    answer: SubmitAnswer = decode(SubmitAnswer, submit.main(encode(wanted)))
    return answer


def test_a_job_is_submitted_with_its_files_secrets_and_owner(attempt: Path, slurm: Any) -> None:
    slurm.set("sbatch", "7\n")
    assert run(request(attempt)) == SubmitAnswer(messages.SUBMITTED, "7", [])
    [call] = slurm.calls("sbatch")
    assert f"--job-name={KEY}" in call and call.endswith(f"{attempt}/{attempt_dir.SCRIPT}")
    assert attempt_dir.job_of(str(attempt)) == "7"
    assert attempt_dir.read_shape(Owner, str(attempt), attempt_dir.OWNER) == Owner(
        key=KEY, version="1", **OWNER
    )
    assert (attempt / attempt_dir.SECRETS / "hub").stat().st_mode & 0o777 == 0o600
    assert "hf_x" not in call


def test_a_second_call_finds_the_job_of_the_first(attempt: Path, slurm: Any) -> None:
    slurm.set("sbatch", "7\n")
    run(request(attempt))
    assert run(request(attempt))[:2] == (messages.FOUND, "7")
    assert len(slurm.calls("sbatch")) == 1


def test_a_job_whose_id_was_never_stored_is_found_by_its_name(attempt: Path, slurm: Any) -> None:
    slurm.set("squeue", f"9|None|{KEY}\n8|None|{KEY}\n5|BadConstraints|{KEY}\n3|None|other\n")
    assert run(request(attempt))[:2] == (messages.FOUND, "8"), "the first of two"
    assert not slurm.calls("sbatch")
    assert attempt_dir.job_of(str(attempt)) == "8"


def test_a_retried_submission_also_looks_for_the_job_in_accounting(attempt: Path, slurm: Any) -> None:
    slurm.set("sbatch", "", code=1, errors="sbatch: error: Socket timed out")
    assert run(request(attempt)).status == messages.REFUSED
    assert not slurm.calls("sacct")
    slurm.set("sacct", f"6|None|{KEY}\n")
    assert run(request(attempt))[:2] == (messages.FOUND, "6")


def test_without_an_answer_of_squeue_nothing_is_submitted(attempt: Path, slurm: Any) -> None:
    slurm.set("squeue", code=1, errors="Unable to contact slurm controller")
    answer = run(request(attempt))
    assert (answer.status, answer.message) == (messages.NO_ANSWER, "Unable to contact slurm controller")
    assert not slurm.calls("sbatch")


def test_a_job_that_started_before_its_id_was_stored_is_the_attempts_and_the_other_is_cancelled(
    attempt: Path, slurm: Any
) -> None:
    (slurm.folder / "sbatch").write_text(f"#!/bin/sh\necho 5 > {attempt}/{attempt_dir.JOB_ID}\necho 7\n")
    assert run(request(attempt))[:2] == (messages.SUBMITTED, "5")
    assert slurm.calls("scancel") == ["7"]


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(submit.os, "link", refuse)


def test_without_hard_links_the_first_process_decides_too(attempt: Path, slurm: Any, no_links: None) -> None:
    slurm.set("sbatch", "7\n")
    assert run(request(attempt))[:2] == (messages.SUBMITTED, "7")
    assert submit.claim(str(attempt), "8") == "7"
    assert run(request(attempt))[:2] == (messages.FOUND, "7")
    left = {path.name for path in attempt.iterdir() if path.name.startswith(attempt_dir.JOB_ID)}
    assert left == {attempt_dir.JOB_ID, attempt_dir.JOB_ID + attempt_dir.CLAIM_FOLDER_SUFFIX}


def test_without_hard_links_a_claim_whose_process_died_halfway_still_decides(
    attempt: Path, slurm: Any, no_links: None
) -> None:
    folder = attempt / f"{attempt_dir.JOB_ID}{attempt_dir.CLAIM_FOLDER_SUFFIX}"
    attempt_dir.write(str(folder / attempt_dir.JOB_ID), "5\n")
    slurm.set("sbatch", "7\n")
    assert run(request(attempt))[:2] == (messages.SUBMITTED, "5")
    assert slurm.calls("scancel") == ["7"] and attempt_dir.job_of(str(attempt)) == "5"


def test_an_id_is_read_from_a_line_of_its_own_or_looked_up_by_name(attempt: Path, slurm: Any) -> None:
    slurm.set("sbatch", "Welcome to the site\n12;cluster\nhave fun\n")
    assert run(request(attempt)).job_id == "12"
    other = attempt.with_name(attempt_dir.attempt_name(2))
    slurm.set("sbatch", "Submitted your job\n")
    answer = run(request(other))
    assert answer.status == messages.UNREAD and "Submitted your job" in answer.message


def test_a_closed_attempt_gets_no_job(attempt: Path, slurm: Any) -> None:
    attempt_dir.write(str(attempt / attempt_dir.CLOSED), "")
    assert run(request(attempt)).status == messages.CLOSED
    assert not slurm.calls("sbatch") and not (attempt / attempt_dir.SECRETS).exists()


def test_an_existing_result_is_returned_instead_of_a_job(attempt: Path, slurm: Any) -> None:
    stage = StageRequest("f")
    slurm.set("sbatch", "7\n")
    run(request(attempt, stage=stage))
    os.link(attempt / attempt_dir.STAGE_MANIFEST, attempt.parent / attempt_dir.STAGE_RESULT)
    answer = run(request(attempt.with_name("attempt-2"), stage=stage))
    assert answer.status == messages.REUSED and answer.result and answer.result.job_id == "7"
    assert len(slurm.calls("sbatch")) == 1


def test_the_secrets_of_earlier_attempts_are_removed(attempt: Path, slurm: Any) -> None:
    slurm.set("sbatch", "7\n")
    later = attempt.with_name(attempt_dir.attempt_name(2))
    for folder in (attempt, later):
        attempt_dir.write(str(folder / attempt_dir.SECRETS / "old"), "hf_old")
    run(request(later))
    assert not (attempt / attempt_dir.SECRETS).exists() and (later / attempt_dir.SECRETS / "hub").exists()


def test_a_test_writes_nothing_and_passes_the_script_on_standard_input(attempt: Path, slurm: Any) -> None:
    slurm.set("sbatch", errors="sbatch: Job 7 to start at noon")
    answer = run(request(attempt, test_only=True))
    assert (answer.status, answer.message) == (messages.FITS, "sbatch: Job 7 to start at noon")
    [call] = slurm.calls("sbatch")
    assert call.endswith("--test-only") and not attempt.exists()
    slurm.set("sbatch", code=1, errors="invalid partition")
    assert run(request(attempt, test_only=True)).status == messages.REFUSED


def test_a_variable_that_another_submission_of_the_same_process_removes_meanwhile_is_no_error(
    attempt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """serve.py runs calls in threads: this one still sees the variable that another one has removed."""
    kind, name = type(os.environ), "LLM_BRIDGE_CLEARED"
    read = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda self, key: "QOS" if key == name else read(self, key))
    assert run(request(attempt, key=None)).status == messages.PLACED


def test_without_a_key_files_are_written_and_nothing_is_submitted(attempt: Path, slurm: Any) -> None:
    assert run(request(attempt, key=None)).status == messages.PLACED
    assert (attempt / attempt_dir.SCRIPT).read_text() == "#!/bin/sh\n"
    assert not slurm.calls("sbatch") and not slurm.calls("squeue")


@pytest.fixture
def beating(attempt: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A first attempt without outcome; call it to have its job touch the heartbeat while the helper watches."""
    heartbeat = attempt / f"{attempt_dir.HEARTBEAT}run"
    attempt_dir.write(str(heartbeat), "")
    attempt_dir.write(str(attempt / attempt_dir.JOB_ID), "7\n")
    attempt_dir.write(str(attempt / attempt_dir.SECRETS / "hub"), "hf_x")
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)

    def beats() -> None:
        monkeypatch.setattr(submit.time, "sleep", lambda seconds: os.utime(heartbeat, (0, 0)))

    return beats


@pytest.mark.parametrize("stage", ["the same", "another"])
def test_no_job_is_submitted_while_the_processes_of_an_earlier_one_run(
    attempt: Path, slurm: Any, beating: Callable[[], None], stage: str
) -> None:
    slurm.set("sbatch", "8\n")
    beating()
    wanted = request(attempt.with_name("attempt-2"))
    if stage == "another":
        wanted = request(attempt.parent / "recovery" / "attempt-1", replaces=[str(attempt)])
    answer = run(wanted)
    assert answer.status == messages.STILL_RUNS and f"Slurm job 7 ({attempt})" in answer.message
    assert (attempt / attempt_dir.CLOSED).exists(), "the job ends itself when it sees that"
    assert not slurm.calls("sbatch") and (attempt / attempt_dir.SECRETS / "hub").exists()
    attempt_dir.write(str(attempt / attempt_dir.OUTCOME), "{}")
    assert run(wanted).job_id == "8"
    assert not (attempt / attempt_dir.SECRETS).exists()


def test_a_job_that_was_killed_holds_the_next_one_up_only_once(
    attempt: Path, slurm: Any, beating: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.set("sbatch", "", code=1, errors="sbatch: error: Socket timed out")
    assert run(request(attempt.with_name("attempt-2"))).status == messages.REFUSED
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: pytest.fail("waits again"))
    slurm.set("sbatch", "8\n")
    assert run(request(attempt.with_name("attempt-2"))).job_id == "8"


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ("sbatch: Job 7 to start at {} using 2 processors on nodes n1 in partition main", 80_000, 86_400),
        ("sbatch: Job 7 to start at 2001-01-01T00:00:00 using 2 processors", 0, 0),
        ("sbatch: Job 7 to start at 2026-02-31T00:00:00 using 2 processors", None, None),
        ("a wrapper's greeting", None, None),
    ],
)
def test_the_estimate_of_a_start_is_seconds_from_now_by_the_login_nodes_clock(
    attempt: Path, slurm: Any, said: str, low: float | None, high: float | None
) -> None:
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 86400))
    slurm.set("sbatch", errors=said.format(start))
    answer = run(request(attempt, test_only=True))
    assert (answer.status, answer.message) == (messages.FITS, said.format(start))
    assert (answer.starts_in is None) is (low is None)
    if low is not None and high is not None:
        assert answer.starts_in is not None and low <= answer.starts_in <= high
    assert not attempt.exists()
