"""What decides a stage's result, as a hash: the same fingerprint and the same inputs mean the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from llm_bridge.config.values import AbsolutePath, Strict

if TYPE_CHECKING:
    from llm_bridge.slurm.job import SlurmJob

# Settings that name or report a run, or say how fast it goes and how much memory it takes, but do not decide what comes
# out: whoever turns them after a failure goes on from the last checkpoint.
NOT_DECISIVE = (
    *("logger", "project_name", "experiment_name", "wandb_entity", "preflight"),
    *("trainer.save_freq", "trainer.test_freq", "trainer.*_ckpt_to_keep", "trainer.val_before_train"),
    *("*micro_batch_size*", "*max_token_len*", "*use_dynamic_bsz*", "*offload*", "*gpu_memory_utilization"),
    *("*num_workers*", "*.enable_gradient_checkpointing", "*log_val_generations*", "*enforce_eager"),
)


class Result(Strict):
    """What a stage leaves behind, so that a finished stage is not run again.

    :param inputs: directories of the stages whose results this one takes.
    :param outputs: what this stage alone makes; set aside (renamed) when an attempt begins anew.
    :param shared: what other runs use too: it has to be there, and is never touched.
    :param force: make it again although it is there.
    """

    inputs: list[AbsolutePath] = []
    outputs: list[AbsolutePath] = []
    shared: list[AbsolutePath] = []
    force: bool = False

    def request(self, fingerprint: str, *, fresh: bool) -> dict[str, Any]:
        """As ``include/login/done.py`` takes it.

        :param fresh: no retry: the stage's first attempt, or the first one after the user has cleared it. Only such
            a one is forced; a retry of it goes on where it failed.
        """
        return {**self.model_dump(), "fingerprint": fingerprint, "force": self.force and fresh}


def request(job: SlurmJob, *, fresh: bool) -> dict[str, Any] | None:
    """What a job leaves behind, as ``include/login/done.py`` takes it; None if that is nothing.

    :param fresh: as for :meth:`Result.request`.
    """
    if not job.makes:
        return job.result.request(of_job(job), fresh=fresh) if job.result else None
    first, *others = (part.result.request(of_job(part), fresh=fresh) for part in job.makes if part.result)
    also = [
        {"name": part.template, "directory": part.directory, **other}
        for part, other in zip(job.makes[1:], others, strict=True)
    ]
    return {**first, "also": also}


def of_job(job: SlurmJob) -> str:
    """A Slurm job's fingerprint: which program, with which settings, on how many GPUs."""
    size = {"nodes": job.resources.nodes, "gpus_per_node": job.resources.gpus_per_node}
    return of(job.template or job.script or "", job.settings | size)


def of(program: str, settings: dict[str, Any]) -> str:
    """A fingerprint, as 64 hexadecimal digits.

    Not part of it: llm-bridge's own code (an upgrade in the middle of a run must neither train again nor lose
    checkpoints), environment and versions on the cluster, and the contents of data and base model.

    :param program: a name, or the text of a user's script.
    :param settings: the job's settings.json; verl's nested ones count by their dotted names.
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
