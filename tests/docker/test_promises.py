"""The verdict of `make compose-verify` on what was promised: it sees each kind of broken promise, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.compose_verify import promises

SFT, MERGE, RAY_UP, WAIT = "sft.train", "sft.merge", "ppo.ray_up", "ppo.wait"
LINES = ("first", "second", "third")


class Run:
    """A run that has kept every promise, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.cluster, self.logs = folder / "run", folder / "logs"
        self.jobs: list[dict[str, str]] = []
        self.queue: list[str] = []
        self.tries = {SFT: ["success"], RAY_UP: ["success"], WAIT: ["success"]}
        self.submit(SFT, "sft", "attempt-1", "COMPLETED")
        self.submit(MERGE, "sft/merge", "attempt-1", "COMPLETED")
        self.submit(RAY_UP, "ppo", "attempt-1", "CANCELLED by 61001")
        self.submit(WAIT, "ppo", "ray-1", "")
        self.log(SFT, "attempt-1", LINES)
        self.log(MERGE, "attempt-1", LINES)
        self.log(RAY_UP, "attempt-1", LINES[:2])
        self.log(WAIT, "ray-1", LINES)

    def submit(self, task: str, stage: str, name: str, state: str) -> Path:
        folder = self.cluster / stage / name
        folder.mkdir(parents=True)
        (folder / "output.log").write_text("".join(f"{line}\n\n" for line in LINES))
        (folder / "outcome.json").write_text(
            json.dumps({"exit_code": 0 if state in ("COMPLETED", "") else 1})
        )
        if not state:
            (folder / "settings.json").write_text("{}")
        else:
            key = f"llmb-{task}-{name[-1]}"
            (folder / "owner.json").write_text(json.dumps({"task_id": task, "key": key}))
            (folder / "job_id").write_text("1")
            minute = len(self.jobs)
            self.jobs.append(
                {"JobName": key, "State": state, "Start": f"10:{minute}0", "End": f"10:{minute}5"}
            )
        return folder

    def log(self, task: str, part: str, lines: tuple[str, ...], number: int = 1, by: int = 1) -> None:
        folder = self.logs / f"task_id={task}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"timestamp": "09:00", "event": "Slurm job 1 runs", "loc": "poller.py:7"}]
        for line in lines:
            end = sum(len(one) + 2 for one in LINES[: LINES.index(line)]) + len(line) + 1
            at = f"10:0{by}:0{LINES.index(line)}"
            rows.append({"timestamp": at, "event": line, "loc": f"{part}/output.log:{end}"})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"attempt={number}.log.trigger.{by}.log").write_text(text + '{"event": "cut off he')

    def broken(self, spared: str = "prepare.run") -> dict[str, list[str]]:
        found = promises.judge(self.cluster, self.logs, self.jobs, self.queue, self.tries, spared)
        assert set(found) == set(promises.KINDS)
        return {kind: sentences for kind, sentences in found.items() if sentences}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_run_that_kept_every_promise(run: Run):
    assert run.broken() == {}


def test_a_log_that_continues_in_another_triggerers_file_is_whole(run: Run):
    run.log(SFT, "attempt-1", LINES[:1], by=1)
    run.log(SFT, "attempt-1", LINES[1:], by=2)
    assert run.broken() == {}


def test_lines_that_are_lost_twice_or_otherwise(run: Run):
    run.log(SFT, "attempt-1", LINES[:2])
    run.log(WAIT, "ray-1", LINES[2:], by=2)
    found = run.broken()
    assert found["log lines lost"] == ["sft.train, attempt-1, try 1: third"]
    assert found["log lines doubled"] == ["ppo.wait, ray-1, try 1: third"]
    file = run.logs / f"task_id={SFT}" / "attempt=1.log.trigger.1.log"
    file.write_text(file.read_text().replace('"second"', '"2nd"'))
    assert run.broken()["log lines wrong"] == ["sft.train, attempt-1, try 1: '2nd' is not 'second'"]


def test_a_repeated_line_may_be_counted_instead_of_logged_and_its_first_one_may_not(run: Run):
    output = run.cluster / "sft" / "attempt-1" / "output.log"
    output.write_text(output.read_text() + "".join(f"{line}\n\n" for line in LINES))
    run.log(SFT, "attempt-1", LINES)
    assert run.broken() == {}
    run.log(SFT, "attempt-1", LINES[1:])
    assert run.broken() == {"log lines lost": ["sft.train, attempt-1, try 1: first"]}


def test_a_log_without_any_line_of_the_output(run: Run):
    run.log(SFT, "attempt-1", ())
    assert run.broken() == {"log lines lost": ["sft.train, attempt-1: all 3 lines"]}


def test_lines_in_another_order(run: Run):
    run.log(SFT, "attempt-1", LINES[:1], by=2)
    run.log(SFT, "attempt-1", LINES[1:], by=1)
    assert run.broken() == {"log lines wrong": ["sft.train, attempt-1, try 1: the order is not the output's"]}


def test_a_job_in_the_queue_and_one_missing_in_accounting_or_the_folders(run: Run):
    run.queue = ["7 llmb-sft.train-1 RUNNING"]
    run.jobs[0]["JobName"] = "llmb-other-1"
    (run.cluster / "sft" / "attempt-1" / "outcome.json").unlink()
    found = run.broken()
    assert found["jobs orphaned"] == run.queue
    assert "llmb-sft.train-1: not in Slurm's accounting, and without an outcome" in found["jobs lost"]
    assert found["jobs doubled"] == ["llmb-other-1: not in any folder"]


def test_a_job_whose_record_slurmctld_lost_and_that_ran_by_its_own_word_is_not_lost(run: Run):
    del run.jobs[0]
    assert run.broken() == {}


def test_a_second_job_after_one_that_had_ended_well(run: Run):
    run.submit(SFT, "sft", "attempt-2", "COMPLETED")
    run.log(SFT, "attempt-2", LINES, number=2)
    assert "sft.train: attempt-2 after attempt-1, which had ended well" in run.broken()["jobs doubled"]


def test_a_task_that_is_done_without_its_job(run: Run):
    folder = run.cluster / "ppo" / "ray-1"
    (folder / "outcome.json").unlink()
    assert run.broken() == {"jobs lost": ["ppo.wait has succeeded; ray-1 has not"]}


def test_tries_that_fail_need_a_job_that_failed_or_a_worker_that_was_killed(run: Run):
    run.tries[SFT] = ["failed", "success"]
    run.log(SFT, "attempt-1", LINES, number=2)
    assert run.broken() == {"tasks wrongly failed": ["sft.train: failed, success"]}
    assert run.broken(spared=SFT) == {}
    run.tries[SFT] = ["failed", "failed", "success"]
    assert run.broken(spared=SFT)
    run.tries[SFT] = ["failed"]
    assert run.broken(spared=SFT)
