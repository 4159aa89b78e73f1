"""The task that broke a run is named, with its log and the cause. The answers were recorded from Airflow 3.3.2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo.failures import error_lines, first_failure, last_line


def task(task_id: str, state: str, ended: str | None = None) -> dict[str, Any]:
    """The fields of a task instance that are read."""
    begun = ended and ended.replace(":2", ":1", 1)
    return {"task_id": task_id, "state": state, "try_number": 1, "start_date": begun, "end_date": ended}


FAILED_RUN = [
    task("summary", "failed", "2026-11-22T23:24:20.5Z"),
    task("check", "success", "2026-11-22T23:24:21.5Z"),
    task("ppo.ray_down", "failed", "2026-11-22T23:24:29.1Z"),
    task("sft.train", "failed", "2026-11-22T23:24:28.5Z"),
    task("sft.merge", "upstream_failed"),
]


def write_log(path: Path, *entries: dict[str, Any]) -> Path:
    """One of Airflow's task logs."""
    path.write_text(
        "not json\n" + "".join(json.dumps({"level": "info", **entry}) + "\n" for entry in entries)
    )
    return path


def raised(kind: str, text: str) -> dict[str, Any]:
    """How an exception is logged."""
    cause = {"exc_type": "OSError", "exc_value": "what it came from", "is_cause": True, "frames": []}
    error = {"exc_type": kind, "exc_value": text, "is_cause": False, "frames": []}
    return {
        "level": "error",
        "event": "Task failed with exception",
        "logger": "task",
        "error_detail": [error, cause],
    }


def test_the_first_by_the_clock_and_not_its_consequences(tmp_path: Path):
    first = write_log(
        tmp_path / "attempt=1.log", raised("SlurmJobFailed", "Slurm job 8 failed:\nexit code 1")
    )
    later = write_log(tmp_path / "attempt=1.log.trigger.2.log", {"event": "the job has ended", "logger": "x"})
    asked = []

    def logs(task_id: str) -> list[Path]:
        asked.append(task_id)
        return [first, later]

    failure = first_failure(FAILED_RUN, logs)
    assert failure and asked == ["sft.train"]
    assert failure.log == first
    assert failure.cause == ["SlurmJobFailed: Slurm job 8 failed:", "exit code 1"]


def test_the_exception_that_the_job_printed_comes_first(tmp_path: Path):
    logger = "llm_bridge.triggers.slurm.SlurmJobTrigger"
    old = write_log(
        tmp_path / "attempt=1.log.trigger.1.log", {"event": "[n1] OldError: of try 1", "logger": logger}
    )
    printed = (
        "[n1] Traceback (most recent call last):",
        "[n1] [rank0]: safetensors_rust.SafetensorError: Error while deserializing header",
        "[n1]     raise ChildFailedError(",
        "[n1] torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
        "[n1] torch.distributed.elastic.multiprocessing.errors.ChildFailedError: x",
    )
    trigger = tmp_path / "attempt=2.log.trigger.1.log"
    write_log(trigger, *({"event": line, "logger": logger} for line in printed))
    own = write_log(tmp_path / "attempt=2.log", raised("SlurmJobFailed", "Slurm job 8 failed"))
    failure = first_failure(
        [task("sft.train", "failed", "2026-11-22T23:24:28.5Z")], lambda _: [old, trigger, own]
    )
    assert failure and failure.log == own
    assert failure.cause == [printed[1], "SlurmJobFailed: Slurm job 8 failed"]


def test_summary_is_named_when_nothing_else_failed():
    failure = first_failure([FAILED_RUN[0]], lambda task_id: [])
    assert failure and failure.task_id == "summary" and failure.log is None
    assert "never started" in failure.text()


def test_no_failure():
    assert first_failure([task("check", "success", "2026-11-22T23:24:21.5Z")], lambda task_id: []) is None


def test_a_long_cause_keeps_both_ends(tmp_path: Path):
    log = write_log(tmp_path / "log", raised("E", "\n".join(f"line {i}" for i in range(100))))
    lines = error_lines(log)
    assert len(lines) < 20 and lines[0] == "E: line 0" and lines[-1] == "line 99"


def test_the_last_error_counts(tmp_path: Path):
    log = write_log(
        tmp_path / "log", raised("First", "x"), {"level": "error", "event": "second"}, {"event": "end"}
    )
    assert error_lines(log) == ["second"]
    assert error_lines(write_log(tmp_path / "other", {"event": "fine"})) == []


def test_an_error_that_is_logged_line_by_line_is_one(tmp_path: Path):
    """As failed jobs and wrong settings are: Airflow adds one entry that says nothing."""
    earlier = {"level": "error", "event": "earlier"}
    lines = [{"level": "error", "event": text} for text in ("Slurm job 8 failed", "Cause: x", "Task exited")]
    log = write_log(tmp_path / "log", earlier, {"event": "retries"}, *lines, {"event": "end"})
    assert error_lines(log) == ["Slurm job 8 failed", "Cause: x"]


def test_last_line_is_the_jobs_and_not_airflows(tmp_path: Path):
    old = write_log(
        tmp_path / "attempt=1.log", {"event": "submitted", "logger": "airflow.task.operators.llm_bridge"}
    )
    trigger = write_log(
        tmp_path / "attempt=1.log.trigger.1.log",
        {"event": "step:1\nstep:2", "logger": "llm_bridge.triggers.slurm.SlurmJobTrigger"},
        {"event": "trigger x starting", "logger": None},
    )
    own = write_log(tmp_path / "attempt=2.log", {"event": "Pushing xcom", "logger": "task"})
    assert last_line([old, trigger, own]) == "step:2"
    assert last_line([old, own]) == "submitted"
    assert last_line([]) == ""


def test_last_line_reads_only_the_end_of_a_long_log(tmp_path: Path):
    log = write_log(tmp_path / "log", *({"event": f"{i:06}" * 20, "logger": "job"} for i in range(3000)))
    assert last_line([log]) == "002999" * 20
