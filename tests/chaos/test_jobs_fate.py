"""What becomes of a job on the cluster: followed under its id where Slurm runs it again, else by one new job."""

from __future__ import annotations

from testing.waiting import until
from tests.chaos.stack import ChaosStack

LONG = {"lines": 24, "pause": 1}
# slurmctld enforces time limits about every 30 s; a job that ends by itself before has done its work.
BEYOND_LIMIT = {"lines": 60, "pause": 1}
# Longer than Slurm needs to give the node up, and the job to see that and to end itself.
BEYOND_NODE = {"lines": 90, "pause": 1}


def lives(stack: ChaosStack, run: str, number: int = 1) -> list[int]:
    (job_id,) = stack.ledger.began(run, number)
    return sorted(stack.ledger.jobs()[job_id].lives)


def test_a_job_that_slurm_runs_again_is_followed_under_its_id(stack: ChaosStack) -> None:
    nodes = {"requeued": "n1", "preempted": "n2", "node-failed": "n3"}
    for run, node in nodes.items():
        partition = "low" if run == "preempted" else "main"
        stack.trigger("job", run, node=node, partition=partition, **LONG)
    job_id = stack.began("requeued")
    stack.slurm("scontrol", "requeue", job_id, user="root")
    stack.began("preempted")
    stack.slurm("sbatch", "-p", "high", "-w", "n2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    stack.began("node-failed")
    stack.cluster.power_off("n3")
    until(lambda: stack.slurm("squeue", "-h", "-t", "PD", "-n", key(stack, "node-failed"), "-o", "%i"), 90)
    stack.cluster.power_on("n3")
    stack.check("job", *nodes)
    assert {run: lives(stack, run) for run in nodes} == {run: [0, 1] for run in nodes}


def test_a_job_lost_to_its_node_or_to_its_time_limit_is_followed_by_one_new_job(stack: ChaosStack) -> None:
    stack.trigger("job", "lost-node", requeue=False, node="n1", **LONG)
    stack.trigger("job", "time-limit", requeue=False, node="n2", **BEYOND_LIMIT)
    job_id = stack.began("time-limit")
    stack.slurm("scontrol", "update", f"jobid={job_id}", "EndTime=now", user="root")
    stack.began("lost-node")
    stack.slurm("scontrol", "update", "nodename=n1", "state=down", "reason=chaos", user="root")
    stack.shown("lost-node", "lost a node", seconds=90)
    stack.slurm("scontrol", "update", "nodename=n1", "state=resume", user="root")
    stack.check("job", "lost-node", attempts=2)  # within the same try
    stack.check("job", "time-limit", attempts=2, tries=2)  # it has no checkpoints to resume from
    stack.shown("time-limit", "ran into its time limit")


def test_a_job_on_a_node_that_does_not_answer_is_followed_by_one_new_job_once_its_processes_end(
    stack: ChaosStack,
) -> None:
    """The node still has the shared file system: two jobs would write the same checkpoints."""
    stack.trigger("job", "cut-off", requeue=False, **BEYOND_NODE)
    node = stack.slurm("squeue", "-h", "-j", stack.began("cut-off"), "-o", "%N").strip()
    stack.cluster.cut(node)
    try:
        stack.shown("cut-off", "still run although Slurm considers it ended")
        stack.began("cut-off", 2)
    finally:
        stack.cluster.join(node)
    first, second = stack.ledger.attempts("cut-off")
    began = min(at for word, at in stack.ledger.jobs()[second.job_id].lives[0] if word == "began")
    assert began > first.alive_until
    stack.check("job", "cut-off", attempts=2)


def key(stack: ChaosStack, run: str) -> str:
    return str(stack.ledger.attempts(run)[0].owner["key"])
