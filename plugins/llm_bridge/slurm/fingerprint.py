"""Hash everything that decides a stage's result: the same fingerprint and the same inputs mean the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from llm_bridge.remote.messages import StageRequest
from llm_bridge.slurm.spec import SlurmJob, StageOutput

# Settings that name or report a run, or affect its speed and memory, but not its result: after a failure they can be
# changed, and the training still resumes from the last checkpoint.
NOT_DECISIVE = (
    *("logger", "project_name", "experiment_name", "wandb_entity", "wandb_run_id", "preflight", "keep"),
    *("tune", "*.tune", "*tuning_dir"),
    *("trainer.save_freq", "trainer.test_freq", "trainer.*_ckpt_to_keep", "trainer.val_before_train"),
    *("*micro_batch_size*", "*max_token_len*", "*use_dynamic_bsz*", "*offload*", "*gpu_memory_utilization"),
    *("*num_workers*", "*.enable_gradient_checkpointing", "*log_val_generations*", "*enforce_eager"),
)


def stage_request(output: StageOutput, fingerprint: str, *, is_first: bool) -> StageRequest:
    """Return a stage as a request for ``remote/login/stage_result.py``.

    Args:
        output: The stage's inputs and outputs.
        fingerprint: The stage's fingerprint.
        is_first: The stage's first attempt, or the first one after the user cleared it. ``force`` applies only to it; a
            retry resumes from its checkpoints.
    """
    return StageRequest(
        fingerprint=fingerprint,
        inputs=output.inputs,
        outputs=output.outputs,
        shared=output.shared,
        force=output.force and is_first,
    )


def job_stage_request(job: SlurmJob, *, is_first: bool) -> StageRequest | None:
    """Return the stages that a job produces as one request; None for a job without outputs.

    Args:
        job: The job.
        is_first: See :func:`stage_request`.
    """
    if not job.produces:
        return stage_request(job.output, job_fingerprint(job), is_first=is_first) if job.output else None
    first, *others = (
        stage_request(part.output, job_fingerprint(part), is_first=is_first)
        for part in job.produces
        if part.output
    )
    also = [
        other._replace(name=part.template or "", directory=part.directory)
        for part, other in zip(job.produces[1:], others, strict=True)
    ]
    return first._replace(also=also)


def job_fingerprint(job: SlurmJob) -> str:
    """Return a Slurm job's fingerprint: of its program, its settings, and its number of nodes and GPUs."""
    size = {"nodes": job.resources.nodes, "gpus_per_node": job.resources.gpus_per_node}
    return compute(job.template or job.script or "", job.settings | size)


def compute(program: str, settings: dict[str, Any]) -> str:
    """Return a fingerprint: 64 hexadecimal digits.

    It does not include llm-bridge's own code (an upgrade in the middle of a run must neither train again nor lose
    checkpoints), the environment and versions on the cluster, or the contents of the data and the base model.

    Args:
        program: Name of the job template, or text of a user's script.
        settings: The job's settings; verl's nested settings are hashed under their dotted names.
    """
    parts = [program, sorted(_decisive(settings))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _decisive(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        name = f"{above}{key}"
        if any(fnmatch(name, pattern) for pattern in NOT_DECISIVE):
            continue
        if isinstance(value, dict) and value:
            yield from _decisive(value, "" if name == "verl" else f"{name}.")
        else:
            yield name, json.dumps(value, sort_keys=True)
