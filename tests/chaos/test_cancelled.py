"""Jobs are cancelled after a user's action or a time limit, and have ended."""

from __future__ import annotations

import time

from testing.waiting import until
from tests.chaos.stack import ChaosStack

ENDLESS = {"lines": 3600, "pause": 1}


def test_whatever_ends_a_task_cancels_its_job(stack: ChaosStack) -> None:
    ways = {
        "marked-failed": ("once", lambda: stack.mark("once", "marked-failed", "failed", "job")),
        "marked-success": ("once", lambda: stack.mark("once", "marked-success", "success", "job")),
        "marked-skipped": ("once", lambda: stack.mark("once", "marked-skipped", "skipped", "job")),
        "run-failed": ("once", lambda: stack.api.fail("once", "run-failed")),
        "dagrun_timeout": ("run_limit", lambda: None),
        "execution_timeout": ("task_limit", lambda: None),
    }
    for run, (dag, _) in ways.items():
        stack.trigger(dag, run, **ENDLESS)
    job_ids = {run: stack.began(run) for run in ways}
    for run, (dag, end_it) in ways.items():
        if "timeout" not in run:
            stack.followed(dag, run)
            end_it()
    for run, job_id in job_ids.items():
        until(lambda job_id=job_id: stack.gone(job_id), 180)
        assert "terminated" in str(stack.ledger.jobs()[job_id].lives), f"{run}: it got no SIGTERM"
        assert len(stack.ledger.attempts(run)) == 1
    for run in ("marked-failed", "run-failed"):
        assert stack.task("once", run)["state"] == "failed"


def test_a_cleared_task_gets_one_new_job_when_the_old_one_is_gone(stack: ChaosStack, run: str) -> None:
    stack.trigger("job", run, **ENDLESS)
    old = stack.began(run)
    stack.followed("job", run)
    stack.clear("job", run, "job")
    new = stack.began(run, 2)
    assert stack.gone(old)
    jobs = stack.ledger.jobs()
    (terminated,) = [at for word, at in jobs[old].lives[0] if word == "terminated"]
    assert terminated <= jobs[new].lives[0][0][1], "both ran at once"
    time.sleep(5)  # the old trigger's on_kill comes late (notes: clear race)
    assert not stack.gone(new)
    assert len(stack.ledger.attempts(run)) == 2
    stack.mark("job", run, "success", "job")
    until(lambda: stack.gone(new))


def test_a_job_cleared_before_its_task_waits_for_it_is_not_left_behind(stack: ChaosStack, run: str) -> None:
    stack.trigger("job", run, **ENDLESS)
    old = stack.began(run)
    stack.clear("job", run, "job")
    new = stack.began(run, 2)
    assert stack.gone(old)
    stack.followed("job", run)
    stack.mark("job", run, "failed", "job")
    until(lambda: stack.gone(new))


def test_a_job_left_running_is_cancelled_by_the_second_sweep(stack: ChaosStack, run: str) -> None:
    stack.trigger("once", run, **ENDLESS)
    job_id = stack.began(run)
    stack.deferred("once", run)
    stack.airflow.kill("triggerer")
    stack.mark("once", run, "failed", "job")
    stack.finished("once", run)
    stack.airflow.revive("triggerer")
    assert not stack.gone(job_id)
    stack.trigger("sweep", run)
    assert stack.finished("sweep", run) == {run: "success"}
    assert stack.gone(job_id)
    assert stack.api.xcom("sweep", run, "quick")["seen"] == [job_id]
