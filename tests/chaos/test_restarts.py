"""While parts of Airflow or the cluster are down, jobs run on, tasks wait, and no line is lost or relayed twice."""

from __future__ import annotations

import os
import time

import pytest

from testing.waiting import until
from tests.chaos.stack import ChaosStack

AWAY_SECONDS = float(os.environ.get("CHAOS_AWAY_SECONDS", "20"))


@pytest.mark.parametrize("accounting", [True, False])
def test_all_of_airflow_may_crash_while_a_job_runs_and_another_ends_and_is_forgotten(
    stack: ChaosStack, accounting: bool
) -> None:
    runs, ends = f"runs-on-{accounting}", f"ends-{accounting}"
    away = () if accounting else ("slurmdbd",)
    with stack.without(*away):
        stack.trigger("job", runs, lines=90)
        stack.trigger("job", ends, lines=30)
        job_id = stack.began(ends)
        stack.deferred("job", runs, ends)
        stack.shown(ends, "line 1 ")
        stack.airflow.crash()
        until(lambda: job_id not in stack.slurm("squeue", "-h", "-t", "all", "-o", "%i").split(), 120)
        assert not stack.slurm("squeue", "-h", "-j", job_id)
        stack.airflow.start()
        stack.check("job", runs, ends)


def test_a_trigger_that_moves_from_a_stalled_to_another_and_from_a_killed_triggerer_leaves_the_job_alone(
    stack: ChaosStack, run: str
) -> None:
    stack.trigger("job", run, lines=150)
    stack.deferred("job", run)
    stack.shown(run, "line 1 ")
    airflow, logs = stack.airflow, stack.ledger.trigger_logs
    airflow.revive("second", kind="triggerer")
    time.sleep(8)
    go_on = airflow.freeze("triggerer")
    until(lambda: len(logs(run)) == 2, 180)
    go_on()
    stack.shown(run, "nothing is cancelled", seconds=300)
    airflow.kill("second")
    stack.check("job", run)
    assert "terminated" not in str(stack.ledger.jobs()[stack.began(run)].lives)


def test_an_unreachable_cluster_is_waited_for_and_costs_no_retry(stack: ChaosStack) -> None:
    stack.trigger("job", "away-runs", lines=60, pause=1)
    stack.trigger("job", "away-ends", lines=30, pause=1)
    job_id = stack.began("away-ends")
    stack.deferred("job", "away-runs", "away-ends")
    time.sleep(6)  # slurmctld saves its state every 5 s; what it loses is the storm's business
    with stack.without("sshd", "slurmctld", "slurmdbd"):
        stack.trigger("job", "away-new", lines=3)
        stack.shown("away-new", "unavailable; deferring until it answers", seconds=180)
        until(lambda: stack.ledger.jobs()[job_id].done, 180)
        time.sleep(AWAY_SECONDS)
        states = {stack.task("job", run)["state"] for run in ("away-runs", "away-ends", "away-new")}
        assert states == {"deferred"}
    stack.check("job", "away-runs", "away-ends", "away-new")
