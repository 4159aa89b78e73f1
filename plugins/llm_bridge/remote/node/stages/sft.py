"""Fine-tune a model (SFT) on one or many nodes: ``python node.pyz sft SETTINGS``, once on each node.

sft_step.sh.j2 starts it. Each node starts torchrun, which starts one verl process per GPU; the nodes find each other
through c10d. Node 0 also makes training resume from a complete checkpoint, and verifies the stage's result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common import gpu_use
from llm_bridge.remote.node.common.job_io import (
    JobError,
    Result,
    Settings,
    attempt,
    log_line,
    read_json,
    run,
    write_json,
)
from llm_bridge.remote.node.common.rendezvous import rendezvous_port
from llm_bridge.remote.node.verl import (
    checkpoints,
    flash_attn,
    sft_rules,
    tracking,
    trainer_config,
    tuner,
    tuning,
)
from llm_bridge.remote.node.verl.hydra_args import overrides

CONFIG = "sft_trainer_engine"
MODULE = "llm_bridge.remote.node.verl.hooks.sft"


class Training(NamedTuple):
    """Training that a stage's settings describe.

    Attributes:
        arguments: Arguments of verl's trainer.
        config: verl's configuration.
        rows: Number of rows of the training data.
        epoch: Steps in one epoch.
        expected: The step at which training is complete.
        replicas: Number of processes with data of their own.
    """

    arguments: list[str]
    config: Any
    rows: int
    epoch: int
    expected: int
    replicas: int


def arguments(settings: Settings, nodes: int, gpus_per_node: int) -> list[str]:
    """Return the arguments of ``verl.trainer.sft_trainer``.

    Args:
        settings: The stage's settings.json.
        nodes: Number of nodes.
        gpus_per_node: Number of GPUs on each node.

    Returns:
        Hydra overrides. The recipe's own come last, so they override the defaults made here.
    """
    return overrides(
        {
            "model.path": settings["model_path"],
            **trainer_config.trainer_settings(settings, nodes, gpus_per_node),
            **({"trainer.max_ckpt_to_keep": settings["keep"]} if settings.get("keep") else {}),
            **settings["verl"],
        }
    )


def allocation(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of nodes, and of GPUs on each, that Slurm allocated to this job.

    Raises:
        JobError: This is no Slurm job, or a job without GPUs.
    """
    nodes = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES")
    if not nodes:
        raise JobError(
            "SLURM_JOB_NUM_NODES is not set: the program 'sft' must run inside a Slurm job, started by sft_step.sh.j2"
        )
    gpus = environ.get("SLURM_GPUS_ON_NODE", "").rpartition(":")[2]  # "8" or "h100:8"
    if not gpus.isdigit():  # not every version and plugin sets it
        gpus = str(len([device for device in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]))
    if int(gpus) == 0:
        raise JobError(
            "Slurm allocated no GPU to this job: neither SLURM_GPUS_ON_NODE nor CUDA_VISIBLE_DEVICES is set. "
            "Check gpus_per_node in the recipe, and gpus_per_node and gpu_request in the cluster file."
        )
    return int(nodes), int(gpus)


def steps_per_epoch(rows: int, batch: int, replicas: int) -> int:
    """Return the optimizer steps in one epoch of ``verl.trainer.sft_trainer``, which drops incomplete batches.

    Args:
        rows: Number of rows of the training data.
        batch: ``data.train_batch_size``: rows per step, over all replicas.
        replicas: Number of processes with data of their own.

    Raises:
        JobError: The batch cannot be divided among the replicas, or there is not one full batch.
    """
    if batch % replicas:
        raise JobError(
            f"data.train_batch_size={batch} is not a multiple of the {replicas} processes that share it"
        )
    steps = (rows // replicas) // (batch // replicas)
    if steps == 0:
        raise JobError(f"{rows} rows of training data do not fill one batch: data.train_batch_size={batch}")
    return steps


def torchrun(
    nodes: int,
    gpus_per_node: int,
    verl_arguments: list[str],
    environ: Mapping[str, str],
    module: str = MODULE,
    restarts: int = 0,
) -> list[str]:
    """Return the command that one node runs.

    Args:
        nodes: Number of nodes.
        gpus_per_node: Number of processes to start on each node.
        verl_arguments: Arguments of verl's trainer.
        environ: Has RENDEZVOUS_HOST (the first node's name, from the batch script) and SLURM_JOB_ID.
        module: The module that its processes run.
        restarts: Number of times that all processes are started again after one has failed.
    """
    job_id = environ["SLURM_JOB_ID"]
    # A node that is still ending one module must not be met by one that starts the next.
    port = rendezvous_port(int(job_id) + (0 if module == MODULE else 1000))
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={nodes}",
        f"--nproc-per-node={gpus_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={job_id}-{environ.get('SLURM_RESTART_COUNT', '0')}",
        f"--rdzv-endpoint={environ['RENDEZVOUS_HOST']}:{port}",
        # Nodes do not start at the same moment: imports from a cold shared file system take minutes.
        "--rdzv-conf=join_timeout=1800,read_timeout=600",
        f"--max-restarts={restarts}",
        "--module",
        module,
        *verl_arguments,
    ]


def compose(settings: Settings, nodes: int, gpus_per_node: int) -> Training:
    """Return verl's configuration for this stage and the steps that it trains; needs data and no GPU.

    Args:
        settings: The stage's settings.json.
        nodes: Number of nodes.
        gpus_per_node: Number of GPUs on each node.

    Raises:
        JobError: verl refuses a setting, or data and settings do not fit together.
    """
    verl_arguments = arguments(settings, nodes, gpus_per_node)
    config = trainer_config.load_config(CONFIG, verl_arguments)
    trainer_config.check_numbers(
        config, "data.train_batch_size", "data.train_max_samples", "trainer.total_epochs"
    )
    gpus, lookup = nodes * gpus_per_node, trainer_config.lookup(config)
    if problems := list(sft_rules.problems(lookup, gpus)):
        raise JobError("; ".join(problems), kind="bad_config")
    replicas = sft_rules.replicas(lookup, gpus)
    rows = trainer_config.count_rows(config.data.train_files, config.data.train_max_samples)
    epoch = steps_per_epoch(rows, config.data.train_batch_size, replicas)
    expected = trainer_config.expected_steps(
        epoch, config.trainer.total_epochs, config.trainer.total_training_steps
    )
    return Training(verl_arguments, config, rows, epoch, expected, replicas)


def check(settings: Settings) -> None:
    """Compose the configuration, and check it against the environment, without GPUs.

    Args:
        settings: The stage's settings.json.

    Raises:
        JobError: As for :func:`compose`, or the environment lacks flash-attn and the settings need it, or a package
            of a logger; or W&B does not know the key.
    """
    config = compose(settings, settings["nodes"], settings["gpus_per_node"]).config
    flash_attn.check(trainer_config.lookup(config), flash_attn.SFT)
    tracking.check(settings, os.environ)


def tuning_of(
    settings: Settings, training: Training, nodes: int, gpus_per_node: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that the tuner chose for this training, and its report; both empty without ``sft.tune``.

    An attempt that resumes a training keeps the settings of the first one.

    Args:
        settings: The stage's settings.json.
        training: The training.
        nodes: Number of nodes.
        gpus_per_node: Number of GPUs on each node.
    """
    mode, file = settings.get("tune", "off"), Path(settings["checkpoint_dir"]) / attempt_dir.TUNED
    if mode == "off":
        return {}, {}
    if mode == "apply" and (kept := read_json(file)):
        return kept["settings"], kept
    command = partial(torchrun, nodes, gpus_per_node, training.arguments, os.environ)
    report = tuner.tuned(settings, training.config, nodes, gpus_per_node, command)
    if report:
        log_line(f"tuning: {report['text']}")
    if not report.get("settings"):
        return {}, report
    if mode == "suggest":
        log_line("tuning: to train with them, put these settings below sft.verl, or set sft.tune to apply")
        return {}, report
    if os.environ.get("SLURM_NODEID", "0") == "0":
        write_json(file, report)
    return report["settings"], report


def train(settings: Settings) -> Result:
    """Train on this node until torchrun ends; on node 0, prepare the checkpoints before and verify the result after.

    Returns:
        The stage's result on node 0, None on the others.

    Raises:
        JobError: Training could not start, or ended without the last checkpoint.
    """
    is_first = os.environ.get("SLURM_NODEID", "0") == "0"
    directory = Path(settings["checkpoint_dir"])
    nodes, gpus = allocation(os.environ)
    training = compose(settings, nodes, gpus)
    verl_arguments, config, rows, epoch, expected, replicas = training
    layout = checkpoints.Layout.sft(nodes * gpus, config.checkpoint.save_contents, replicas)

    if trainer_config.already_trained(directory, layout, expected):
        if is_first:
            log_line(
                f"an earlier attempt trained all {expected} steps: nothing to do. To train again, start a new run"
            )
        return trainer_config.verify_result(directory, expected) if is_first else None
    if is_first:
        directory.mkdir(parents=True, exist_ok=True)
        if config.trainer.resume_mode == "auto":
            step = checkpoints.rewind(directory, layout)
            if step and step % epoch == 0:
                checkpoints.start_next_epoch_afresh(checkpoints.step_directory(directory, step))
            checkpoints.prune(directory, layout, config.trainer.max_ckpt_to_keep)
        log_line(
            f"SFT: {rows} rows, {epoch} steps an epoch, {expected} steps on {nodes} node(s) x {gpus} GPU(s)"
        )

    applied, report = tuning_of(settings, training, nodes, gpus)
    if applied and is_first:
        log_line(f"SFT with settings of the tuner: {' '.join(overrides(applied))}")

    # hydra keeps the configuration of this run there, instead of in outputs/DATE/TIME.
    run_directory = f"hydra.run.dir={attempt_dir.HYDRA}"
    command = torchrun(nodes, gpus, [*verl_arguments, run_directory], os.environ)
    variables = trainer_config.training_environment(settings, os.environ, attempt())
    if applied:
        variables[tuning.TUNED_VARIABLE] = json.dumps(applied)
    with gpu_use.sampled(attempt()):
        ended = subprocess.run(command, env={**os.environ, **variables})
    if ended.returncode:
        # verl's own traceback is in the log above; Slurm gets torchrun's exit code unchanged.
        sys.exit(ended.returncode if ended.returncode > 0 else 128 - ended.returncode)
    if not is_first:
        return None
    result = trainer_config.verify_result(directory, expected) | tracking.noted_wandb_run(attempt())
    return result | ({"tuning": {**report, "applied": bool(applied)}} if report else {})


def main() -> None:
    """Run the program (``python node.pyz sft SETTINGS``)."""
    run(train)
