"""A job that is warned before its end, by the real Slurm."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.operators import SlurmSubmitOperator
from tests.operators.test_submit import until

# Ends well as soon as it is warned, and gives back when its end would have been.
SAVES = """\
#!/bin/bash
until [ -s "$LLM_BRIDGE_ENDS_SOON" ]; do sleep 0.2; done
printf '{"ends": %s}' "$(cat "$LLM_BRIDGE_ENDS_SOON")" > result.json
"""


def warned(slurm: Any, **resources: Any) -> SlurmSubmitOperator:
    job = SlurmJob(
        cluster="test",
        script=SAVES,
        directory=f"{slurm.workspace}/warned-{time.monotonic_ns()}",
        resources=Resources(time_limit="60", **resources),
        warned=True,
    )
    return SlurmSubmitOperator(task_id="t", job=job)


def test_a_time_limit_that_comes_near_is_told_to_the_job(task: Any, slurm: Any, logged: Any) -> None:
    """Shortened while it runs, so that Slurm, which looks every 30 s, warns now."""
    operator = warned(slurm)
    trigger = task.start(operator)
    until(lambda: state(slurm, trigger.job_id) == "RUNNING")
    time.sleep(1)
    slurm.run("ctl", ["scontrol", "update", f"jobid={trigger.job_id}", "TimeLimit=10"])
    done = operator.execute_complete(task.context, asyncio.run(trigger.outcome()))
    assert done["result"]["ends"] == pytest.approx(time.time() + 600, abs=60)
    assert any("Slurm warns that the job ends in" in line for line in logged())


def test_a_preempted_job_learns_when_its_grace_time_ends(task: Any, slurm: Any) -> None:
    operator = warned(slurm, partition="lowgrace", nodes=4, exclusive=True)
    trigger = task.start(operator)
    until(lambda: state(slurm, trigger.job_id) == "RUNNING")
    time.sleep(1)
    slurm.run(
        "login",
        ["sbatch", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "true"],
        user="svc",
    )
    done = operator.execute_complete(task.context, asyncio.run(trigger.outcome()))
    # The partition gives 60 s; an hour of the time limit is left.
    assert done["result"]["ends"] == pytest.approx(time.time() + 60, abs=20)


def state(slurm: Any, job_id: str) -> str:
    return str(slurm.run("login", ["squeue", "-h", "-o", "%T", "-j", job_id], user="svc").stdout.strip())
