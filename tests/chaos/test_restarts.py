"""Whatever of Airflow or the cluster is away, jobs run on, tasks wait, and no line is lost or told twice."""

from __future__ import annotations

import os
import time

import pytest

from tests.chaos.stack import Stack

pytestmark = pytest.mark.long
AWAY_SECONDS = float(os.environ.get("CHAOS_AWAY_SECONDS", "20"))


@pytest.mark.parametrize("accounting", [True, False])
def test_all_of_airflow_may_crash_while_a_job_runs_and_another_ends_and_is_forgotten(
    stack: Stack, accounting: bool
) -> None:
    runs, ends = f"runs-on-{accounting}", f"ends-{accounting}"
    away = () if accounting else ("slurmdbd",)
    with stack.without(*away):
        stack.run("job", runs, lines=90)
        stack.run("job", ends, lines=30)
        job_id = stack.began(ends)
        stack.deferred("job", runs, ends)
        stack.shown(ends, "line 1 ")
        stack.airflow.crash()
        stack.until(lambda: job_id not in stack.slurm("squeue", "-h", "-t", "all", "-o", "%i").split(), 120)
        assert not stack.slurm("squeue", "-h", "-j", job_id)
        stack.airflow.start()
        stack.check("job", runs, ends)


def test_a_trigger_that_moves_from_a_stalled_to_another_and_from_a_killed_triggerer_leaves_the_job_alone(
    stack: Stack, run: str
) -> None:
    stack.run("job", run, lines=150)
    stack.deferred("job", run)
    stack.shown(run, "line 1 ")
    airflow, logs = stack.airflow, stack.ledger.trigger_logs
    airflow.revive("second", kind="triggerer")
    time.sleep(8)
    go_on = airflow.freeze("triggerer")
    stack.until(lambda: len(logs(run)) == 2, 60)
    go_on()
    stack.shown(run, "is left alone", seconds=90)
    airflow.kill("second")
    stack.check("job", run)
    assert "terminated" not in str(stack.ledger.jobs()[stack.began(run)].lives)


def test_a_cluster_that_is_away_is_waited_for_and_costs_no_retry(stack: Stack) -> None:
    stack.run("job", "away-runs", lines=60, pause=1)
    stack.run("job", "away-ends", lines=30, pause=1)
    job_id = stack.began("away-ends")
    stack.deferred("job", "away-runs", "away-ends")
    time.sleep(6)  # slurmctld saves its state every 5 s; what it loses is the storm's business
    with stack.without("sshd", "slurmctld", "slurmdbd"):
        stack.run("job", "away-new", lines=3)
        stack.shown("away-new", "waiting for cluster", seconds=90)
        stack.until(lambda: stack.ledger.jobs()[job_id].done, 60)
        time.sleep(AWAY_SECONDS)
        states = {stack.task("job", run)["state"] for run in ("away-runs", "away-ends", "away-new")}
        assert states == {"deferred"}
    stack.check("job", "away-runs", "away-ends", "away-new")
