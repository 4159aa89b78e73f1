"""Define the classes of failures: meaning, action with its reason, and advice to the user."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Action(Enum):
    """Action after a failure. The values complete "The task ..." in ``docs/troubleshooting.md``."""

    STOP = "fails without a retry"
    ELSEWHERE = "retries at once without the node if one is named, else after its `retry_delay`"
    CONTINUE = "resumes from the newest complete checkpoint within the same try, which uses no retry"
    LATER = "retries after its `retry_delay`"


class FailureClass(NamedTuple):
    """Class of failures with one cause.

    Attributes:
        title: Short description.
        action: Action after the failure, unless the task's history or its retries forbid it.
        why: Reason for the action.
        advice: Steps for the user, with the settings to change.
    """

    title: str
    action: Action
    why: str
    advice: str


# Settings have their names of include/recipes and include/clusters; verl's settings keep verl's names.
CLASSES: dict[str, FailureClass] = {
    "network": FailureClass(
        "connections between the nodes failed (NCCL, gloo)",
        Action.ELSEWHERE,
        "a fault of a link or switch is transient or affects one node; the training itself is sound",
        "If it happens again: set network_interface in the cluster file to the interface that all nodes share, add the "
        "node to exclude, and run again with NCCL_DEBUG: INFO under variables.",
    ),
    "ray_bring_up": FailureClass(
        "the Ray cluster did not start, or is unreachable",
        Action.ELSEWHERE,
        "a slow file system or a faulty node delays Ray; the next allocation usually works",
        "Read ray_nodes/NODE.log in the attempt's directory. If imports are slow, raise ray.ready_minutes in the "
        "cluster file. If ports or addresses are wrong, set network_interface.",
    ),
    "cuda_oom": FailureClass(
        "a GPU ran out of memory",
        Action.STOP,
        "the same batch on the same GPUs needs the same memory",
        "Lower *micro_batch_size_per_gpu or *max_token_len_per_gpu in the recipe's verl settings, lower "
        "rollout.gpu_memory_utilization, or turn on *offload or enable_gradient_checkpointing; then clear the task. It "
        "resumes from its newest checkpoint, because these settings do not change the result.",
    ),
    "host_oom": FailureClass(
        "a node ran out of main memory",
        Action.STOP,
        "the same job needs the same memory",
        "Raise mem of the stage in the recipe or the cluster file, or lower data.num_workers, ray.object_store_gib or "
        "*offload; then clear the task.",
    ),
    "time_limit": FailureClass(
        "the job reached its time limit",
        Action.CONTINUE,
        "a training that saves checkpoints resumes, in as many jobs as it needs",
        "Raise time_limit of the stage to need fewer jobs. Slurm signals SFT and PPO before the limit, and they save "
        "the last possible step; if much work was lost nevertheless, search the log for 'Slurm warns'.",
    ),
    "preempted": FailureClass(
        "Slurm preempted or requeued the job",
        Action.CONTINUE,
        "the site gave the nodes to another job; this job is sound",
        "Nothing to do. If it happens often, use another partition or qos, or lower trainer.save_freq.",
    ),
    "node_failure": FailureClass(
        "a node of the job failed",
        Action.CONTINUE,
        "the machine failed, not the training",
        "Nothing to do: the next attempts exclude the node. Report it to the site's administrators; exclude in the "
        "cluster file excludes it from all runs.",
    ),
    "forgotten": FailureClass(
        "the job is no longer known to Slurm",
        Action.CONTINUE,
        "a slurmctld that crashes loses what happened in its last seconds; the job itself is sound",
        "Nothing to do. If it happens again, ask the site's administrators why slurmctld restarts. A sensor cannot "
        "resubmit the job of another task: clear the task that submitted it.",
    ),
    "gpu_hardware": FailureClass(
        "a GPU is broken (Xid, ECC, fallen off the bus)",
        Action.ELSEWHERE,
        "the GPU stays broken; other nodes are sound",
        "Report the evidence line to the site's administrators; exclude in the cluster file excludes the node from all "
        "runs.",
    ),
    "bad_node": FailureClass(
        "a node failed the checks before the job's work (preflight)",
        Action.ELSEWHERE,
        "the node is unfit for the job; others may be fit",
        "The evidence line names the failed check. If every node fails it, correct the cluster file (preflight, "
        "network_interface, environment); else report the node to the site's administrators.",
    ),
    "cancelled": FailureClass(
        "a user cancelled the job",
        Action.STOP,
        "a user cancelled the job on purpose",
        "Ask the user named in the evidence line. Clear the task to resume from its newest checkpoint.",
    ),
    "environment": FailureClass(
        "a program, module or Python package is missing on the cluster",
        Action.STOP,
        "it would be missing again",
        "Correct environment (modules, venv, conda, container) in the cluster file, or build it: "
        "python -m llm_bridge install-environment CLUSTER; then clear the task.",
    ),
    "bad_config": FailureClass(
        "a setting is wrong",
        Action.STOP,
        "the same setting would be refused again",
        "Correct the key in the recipe (with verl's own name; prefix a key that verl's files do not have with '+') or "
        "in the cluster file; then clear check and the task.",
    ),
    "missing_path": FailureClass(
        "a file or folder is missing or unreadable",
        Action.STOP,
        "it would be missing again",
        "Correct the path in the recipe, or clear prepare to download data and base model again.",
    ),
    "checkpoint_incompatible": FailureClass(
        "the checkpoint or model is incompatible or corrupt",
        Action.STOP,
        "the same file would be read again",
        "Use the same nodes, GPUs and base model as the first attempt. To start from zero, `touch force_rerun` in the "
        "stage's directory and clear the task; nothing is deleted.",
    ),
    "disk_full": FailureClass(
        "the disk is full, or a quota is exhausted",
        Action.STOP,
        "there would be no more space in the next try",
        "Free space in the workspace (old runs, `*.archived-attempt-*`), raise the quota, or keep fewer checkpoints "
        "(trainer.max_ckpt_to_keep, trainer.max_actor_ckpt_to_keep); then clear the task.",
    ),
    "token_refused": FailureClass(
        "the Hub or Weights & Biases refuses the token",
        Action.STOP,
        "the same token would be refused again",
        "Store a valid token with write access in the Airflow connection that the cluster file (hub.conn_id, "
        "wandb_conn_id) or the task (hub_conn_id) names; accept the model's licence on the Hub if it is gated. Then "
        "clear the task.",
    ),
    "hub_unavailable": FailureClass(
        "the Hub is unreachable or unavailable",
        Action.LATER,
        "an outage of a server or network is temporary",
        "If it continues, check HF_ENDPOINT and the proxies under variables of the cluster file (on a worker: the host "
        "of the task's hub_conn_id), or run the stage in a partition whose nodes have internet access.",
    ),
    "hang": FailureClass(
        "the job hung: no output and no progress",
        Action.ELSEWHERE,
        "most hangs are a lost connection between ranks",
        "Read the last lines of the log, and check the node if one is named. If the job was only slow in its first "
        "step, raise hang_minutes.",
    ),
    "task_limit": FailureClass(
        "the task's own time limit (execution_timeout, timeout) has passed",
        Action.LATER,
        "the job itself may be sound",
        "Raise execution_timeout (or the sensor's timeout); it starts again with each job of the task.",
    ),
    "unknown": FailureClass(
        "no known cause was found",
        Action.LATER,
        "a retry may succeed",
        "Read the end of the job's log; the error message has its path.",
    ),
}


def class_of(name: str) -> FailureClass:
    """Return the class ``name``, or the class "unknown" for a name that this version does not have."""
    return CLASSES.get(name, CLASSES["unknown"])
