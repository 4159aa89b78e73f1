"""The classes of failures: what each means, what is done about it and why, and which knob a user can turn."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Action(Enum):
    """What follows a failure; the text goes into ``docs/troubleshooting.md``."""

    STOP = "stops at once: the same job would fail the same way"
    ELSEWHERE = (
        "tries again at once, without the node where one is named; else after the task's `retry_delay`"
    )
    CONTINUE = "goes on from the newest complete checkpoint in the same try: it uses up no retry"
    LATER = "tries again after the task's `retry_delay`"


class Kind(NamedTuple):
    """One class.

    :param title: a few words for people.
    :param why: the reason for ``action``.
    :param advice: what the user can do, and which knob to turn.
    """

    title: str
    action: Action
    why: str
    advice: str


# Names of settings are those of include/recipes and include/clusters; verl's settings keep verl's names.
KINDS: dict[str, Kind] = {
    "network": Kind(
        "the nodes lost or never had their connections (NCCL, gloo)",
        Action.ELSEWHERE,
        "a bad link or switch passes or stays with a node; the training itself is sound",
        "If it comes back: set network_interface in the cluster file to the interface that all nodes share, name the "
        "node in exclude, and run again with NCCL_DEBUG: INFO under variables.",
    ),
    "ray_bring_up": Kind(
        "the Ray cluster did not come up, or cannot be reached",
        Action.ELSEWHERE,
        "a slow file system or a sick node delays Ray; the next allocation usually works",
        "Look at ray_nodes/NODE.log in the attempt's directory. Slow imports: raise ray.ready_minutes in the cluster "
        "file. Ports or addresses: set network_interface.",
    ),
    "cuda_oom": Kind(
        "a GPU ran out of memory",
        Action.STOP,
        "the same batch on the same GPUs needs the same memory",
        "Lower *micro_batch_size_per_gpu or *max_token_len_per_gpu in the recipe's verl settings, lower "
        "rollout.gpu_memory_utilization, or turn on *offload or enable_gradient_checkpointing; then clear the task: "
        "it goes on from its newest checkpoint, because these settings do not decide the result.",
    ),
    "host_oom": Kind(
        "a node ran out of main memory",
        Action.STOP,
        "the same job needs the same memory",
        "Raise mem of the stage in the recipe or the cluster file; or lower data.num_workers, "
        "ray.object_store_gib or *offload.",
    ),
    "time_limit": Kind(
        "the job ran into its time limit",
        Action.CONTINUE,
        "a training that saves goes on where it was, in as many jobs as it takes",
        "Raise time_limit of the stage to have fewer jobs. SFT and PPO are warned by Slurm and save the last step that "
        "they can; if much was lost all the same, look for 'Slurm warns' in the log.",
    ),
    "preempted": Kind(
        "the job was preempted or put back into the queue by Slurm",
        Action.CONTINUE,
        "the site took the nodes for another job; nothing is wrong with this one",
        "Nothing to do. If it happens often: another partition or qos, or a lower trainer.save_freq.",
    ),
    "node_failure": Kind(
        "a node failed under the job",
        Action.CONTINUE,
        "the machine broke, not the training",
        "Nothing to do: the node is left out. Tell the site's administrators; exclude in the cluster file leaves it "
        "out for all runs.",
    ),
    "forgotten": Kind(
        "Slurm does not know the job any more",
        Action.CONTINUE,
        "a slurmctld that crashes forgets what came in its last seconds; the job itself is sound",
        "Nothing to do. If it happens again ask the site's administrators why slurmctld is restarted. A sensor cannot "
        "bring back the job of another task: clear the task that submitted it.",
    ),
    "gpu_hardware": Kind(
        "a GPU is broken (Xid, ECC, fallen off the bus)",
        Action.ELSEWHERE,
        "the GPU stays broken, other nodes are well",
        "Tell the site's administrators, with the line above; exclude in the cluster file leaves the node out for all "
        "runs.",
    ),
    "bad_node": Kind(
        "a node failed the look before the work (preflight)",
        Action.ELSEWHERE,
        "the node is not fit for the job, others may be",
        "The line says what it lacks. Where every node lacks it, correct the cluster file (preflight, "
        "network_interface, environment); else tell the site's administrators.",
    ),
    "cancelled": Kind(
        "a person cancelled the job",
        Action.STOP,
        "who cancels a job does not want it back",
        "Ask whoever is named. Clear the task to go on from its newest checkpoint.",
    ),
    "environment": Kind(
        "a program, module or Python package is missing on the cluster",
        Action.STOP,
        "it is missing the next time too",
        "Correct environment (modules, venv, conda, container) in the cluster file, or install "
        "requirements-cluster.txt there; then clear the task.",
    ),
    "bad_config": Kind(
        "a setting is wrong",
        Action.STOP,
        "the same setting is refused again",
        "Correct the key in the recipe (verl's own names; a key that verl's files do not have needs a '+' in front) "
        "or in the cluster file; then clear check and the task.",
    ),
    "missing_path": Kind(
        "a file or folder is missing or may not be read",
        Action.STOP,
        "it is missing the next time too",
        "Correct the path in the recipe, or clear prepare so that data and base model are fetched again.",
    ),
    "checkpoint_incompatible": Kind(
        "the checkpoint or model does not fit, or is broken",
        Action.STOP,
        "the same file is read again",
        "Use the nodes and GPUs of the first attempt and the same base model. To begin anew: put an empty file force "
        "into the stage's directory and clear the task; nothing is deleted.",
    ),
    "disk_full": Kind(
        "the disk is full, or a quota is used up",
        Action.STOP,
        "there is no more room the next time",
        "Free space in the workspace (old runs, `*.until-attempt-*`), raise the quota, or keep fewer checkpoints "
        "(trainer.max_ckpt_to_keep, trainer.max_actor_ckpt_to_keep); then clear the task.",
    ),
    "token_refused": Kind(
        "the Hub or Weights & Biases refuses the token",
        Action.STOP,
        "the same token is refused again",
        "Put a valid token with write access into the Airflow connection that the cluster file (hub.conn_id, "
        "wandb_conn_id) or the task (hub_conn_id) names; accept the model's licence on the Hub if it is gated. Then "
        "clear the task.",
    ),
    "hub_away": Kind(
        "the Hub cannot be reached, or is in trouble",
        Action.LATER,
        "a server or a network that is away comes back",
        "If it stays away: HF_ENDPOINT and the proxies under variables of the cluster file (on a worker: the host of "
        "the task's hub_conn_id), or a partition whose nodes reach the internet for the stage.",
    ),
    "hang": Kind(
        "the job stood still",
        Action.ELSEWHERE,
        "most hangs are a lost connection between ranks",
        "Look at the last lines and at the node named. A slow first step is no hang: raise hang_minutes.",
    ),
    "task_limit": Kind(
        "the task's own time limit (execution_timeout, timeout) has passed",
        Action.LATER,
        "the limit is the user's",
        "Raise execution_timeout (or the sensor's timeout): it counts for each job of the task.",
    ),
    "unknown": Kind(
        "llm-bridge does not know the cause",
        Action.LATER,
        "nothing speaks against another try",
        "Read the end of the log whose path stands below.",
    ),
}


def kind_of(name: str) -> Kind:
    """The class ``name``; "unknown" for one that this version does not know."""
    return KINDS.get(name, KINDS["unknown"])
