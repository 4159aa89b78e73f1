"""What becomes of a job on the cluster: followed under its id where Slurm runs it again, else by one new job."""

from __future__ import annotations

import pytest

from tests.chaos.stack import Stack

pytestmark = pytest.mark.long
LONG = {"lines": 24, "pause": 1}


def lives(stack: Stack, run: str, number: int = 1) -> list[int]:
    (job_id,) = stack.ledger.began(run, number)
    return sorted(stack.ledger.jobs()[job_id].lives)


def test_a_job_that_slurm_runs_again_is_followed_under_its_id(stack: Stack) -> None:
    nodes = {"requeued": "n1", "preempted": "n2", "node-failed": "n3"}
    for run, node in nodes.items():
        partition = "low" if run == "preempted" else "main"
        stack.run("job", run, node=node, partition=partition, **LONG)
    job_id = stack.began("requeued")
    stack.slurm("scontrol", "requeue", job_id, user="root")
    stack.began("preempted")
    stack.slurm("sbatch", "-p", "high", "-w", "n2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    stack.began("node-failed")
    stack.cluster.power_off("n3")
    stack.until(
        lambda: stack.slurm("squeue", "-h", "-t", "PD", "-n", key(stack, "node-failed"), "-o", "%i"), 90
    )
    stack.cluster.power_on("n3")
    stack.check("job", *nodes)
    assert {run: lives(stack, run) for run in nodes} == {run: [0, 1] for run in nodes}


def test_a_job_lost_to_its_node_or_to_its_time_limit_is_followed_by_one_new_job(stack: Stack) -> None:
    stack.run("job", "lost-node", requeue=False, node="n1", **LONG)
    stack.run("job", "time-limit", requeue=False, node="n2", **LONG)
    job_id = stack.began("time-limit")
    stack.slurm("scontrol", "update", f"jobid={job_id}", "EndTime=now", user="root")
    stack.began("lost-node")
    stack.slurm("scontrol", "update", "nodename=n1", "state=down", "reason=chaos", user="root")
    stack.shown("lost-node", "lost a node", seconds=90)
    stack.slurm("scontrol", "update", "nodename=n1", "state=resume", user="root")
    stack.check("job", "lost-node", attempts=2)  # within the same try
    stack.check("job", "time-limit", attempts=2, tries=2)  # it has no checkpoints to go on from
    stack.shown("time-limit", "ran into its time limit")


def key(stack: Stack, run: str) -> str:
    return str(stack.ledger.attempts(run)[0].owner["key"])
