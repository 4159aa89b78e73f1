"""Supervised fine-tuning on one or many nodes: ``sft.py SETTINGS``, run once on each node by sft.sh.j2.

Each node starts torchrun, which starts one verl process a GPU; the nodes find each other through c10d. Node 0
also makes sure that training goes on from a complete checkpoint, and judges the stage at its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import checkpoints
import verl_run
from hydra_args import overrides
from job_io import JobError, Settings, run, say

CONFIG = "sft_trainer_engine"


def arguments(settings: Settings, nodes: int, gpus_per_node: int) -> list[str]:
    """What ``verl.trainer.sft_trainer`` is called with.

    :param settings: the stage's settings.json.
    :returns: hydra overrides. The recipe's own come last, so they win over defaults made here.
    """
    return overrides(
        {
            "model.path": settings["model_path"],
            **verl_run.trainer_settings(settings, nodes, gpus_per_node),
            **({"trainer.max_ckpt_to_keep": settings["keep"]} if settings.get("keep") else {}),
            **settings["verl"],
        }
    )


def allocation(environ: Mapping[str, str]) -> tuple[int, int]:
    """Nodes, and GPUs on each, as Slurm gave them to this job.

    :raises JobError: not inside a Slurm job, or a job without GPUs.
    """
    nodes = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES")
    if not nodes:
        raise JobError("SLURM_JOB_NUM_NODES is not set: sft.py runs inside a Slurm job, started by sft.sh.j2")
    gpus = environ.get("SLURM_GPUS_ON_NODE", "").rpartition(":")[2]  # "8" or "h100:8"
    if not gpus.isdigit():  # not set by every version and plugin
        gpus = str(len([device for device in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]))
    if int(gpus) == 0:
        raise JobError(
            "Slurm gave this job no GPU: neither SLURM_GPUS_ON_NODE nor CUDA_VISIBLE_DEVICES is set. "
            "Check gpus_per_node in the recipe, and gpus_per_node and gpu_request in the cluster's file."
        )
    return int(nodes), int(gpus)


def steps_per_epoch(rows: int, batch: int, replicas: int) -> int:
    """Optimizer steps in one epoch of ``verl.trainer.sft_trainer``, which drops what does not fill a batch.

    :param rows: of the training data.
    :param batch: ``data.train_batch_size``, over all replicas.
    :param replicas: processes with data of their own.
    :raises JobError: the batch cannot be shared out, or there is not one full batch.
    """
    if batch % replicas:
        raise JobError(
            f"data.train_batch_size={batch} is not a multiple of the {replicas} processes that share it"
        )
    steps = (rows // replicas) // (batch // replicas)
    if steps == 0:
        raise JobError(f"{rows} rows of training data do not fill one batch: data.train_batch_size={batch}")
    return steps


def rendezvous_port(job_id: int) -> int:
    """A port of this job's own, below the range that Linux hands out by itself (32768 and up)."""
    return 20000 + job_id % 10000


def torchrun(
    nodes: int, gpus_per_node: int, verl_arguments: list[str], environ: Mapping[str, str]
) -> list[str]:
    """The command that one node runs.

    :param environ: RENDEZVOUS_HOST (the first node's name, from the batch script) and SLURM_JOB_ID.
    """
    job = environ["SLURM_JOB_ID"]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={nodes}",
        f"--nproc-per-node={gpus_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={job}-{environ.get('SLURM_RESTART_COUNT', '0')}",
        f"--rdzv-endpoint={environ['RENDEZVOUS_HOST']}:{rendezvous_port(int(job))}",
        # Nodes do not start at the same moment: imports from a cold shared file system take minutes.
        "--rdzv-conf=join_timeout=1800,read_timeout=600",
        str(Path(__file__).with_name("in_verl") / "llm_bridge_sft.py"),
        *verl_arguments,
    ]


def train(settings: Settings) -> Optional[dict[str, Any]]:
    """Train on this node until torchrun ends; see the module's text.

    :returns: the stage's result on node 0, None on the others.
    :raises JobError: it could not start, or ended without the last checkpoint.
    """
    is_first = os.environ.get("SLURM_NODEID", "0") == "0"
    directory = Path(settings["checkpoint_dir"])
    nodes, gpus = allocation(os.environ)
    verl_arguments = arguments(settings, nodes, gpus)
    config = verl_run.composed(CONFIG, verl_arguments)
    replicas = nodes * gpus // config.engine.get("ulysses_sequence_parallel_size", 1)
    rows = verl_run.count_rows(config.data.train_files, config.data.train_max_samples)
    epoch = steps_per_epoch(rows, config.data.train_batch_size, replicas)
    expected = verl_run.expected_steps(
        epoch, config.trainer.total_epochs, config.trainer.total_training_steps
    )
    layout = checkpoints.Layout.sft(nodes * gpus, config.checkpoint.save_contents, replicas)

    if verl_run.already_trained(directory, layout, expected):
        if is_first:
            say(
                f"an earlier attempt trained all {expected} steps: nothing to do. To train again, start a new run"
            )
        return verl_run.judge(directory, expected) if is_first else None
    if is_first:
        directory.mkdir(parents=True, exist_ok=True)
        if config.trainer.resume_mode == "auto":
            step = checkpoints.rewind(directory, layout)
            if step and step % epoch == 0:
                checkpoints.start_next_epoch_afresh(checkpoints.step_directory(directory, step))
            checkpoints.prune(directory, layout, config.trainer.max_ckpt_to_keep)
        say(f"SFT: {rows} rows, {epoch} steps an epoch, {expected} steps on {nodes} node(s) x {gpus} GPU(s)")

    # hydra keeps the configuration as run here, instead of in outputs/DATE/TIME
    command = torchrun(nodes, gpus, [*verl_arguments, "hydra.run.dir=hydra"], os.environ)
    ended = subprocess.run(command, env={**os.environ, **verl_run.training_environment(settings, os.environ)})
    if ended.returncode:
        # verl's own traceback stands above; the code goes up to Slurm as it is.
        sys.exit(ended.returncode if ended.returncode > 0 else 128 - ended.returncode)
    return verl_run.judge(directory, expected) if is_first else None


if __name__ == "__main__":
    run(train)
