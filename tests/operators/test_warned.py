"""A job that the real Slurm signals before its end; tests/e2e has the time limit, and a training that saves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing.waiting import until

# Succeeds as soon as it is signalled; its result is the time at which Slurm would have ended it.
SAVES = """\
#!/bin/bash
until [ -s "$LLM_BRIDGE_ENDS_SOON" ]; do sleep 0.2; done
printf '{"ends": %s}' "$(cat "$LLM_BRIDGE_ENDS_SOON")" > result.json
"""


def signalled(slurm: Any, **resources: Any) -> SlurmSubmitOperator:
    job = SlurmJob(
        cluster="test",
        script=SAVES,
        directory=f"{slurm.workspace}/signalled-{time.monotonic_ns()}",
        resources=Resources(time_limit="60", **resources),
        signal_before_timeout=True,
    )
    return SlurmSubmitOperator(task_id="t", job=job)


def test_a_preempted_job_gets_the_end_of_its_grace_time(task: Any, slurm: Any) -> None:
    operator = signalled(slurm, partition="lowgrace", nodes=4, exclusive=True)
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
