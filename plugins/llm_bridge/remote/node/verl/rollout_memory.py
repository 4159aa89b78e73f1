"""Refuse a share of a GPU for vLLM that cannot fit beside the weights and the optimizer's state of PPO's models.

verl 0.9.1 finds it in the second step, minutes after its start: the optimizer's state does not exist before the first
update. The figures are from trainings on H200s (docs/gpu.md, "Memory beside vLLM").
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.hub.weight_files import MAX_HEADER_BYTES
from llm_bridge.remote.node.verl import ppo_rules

SHARE = "actor_rollout_ref.rollout.gpu_memory_utilization"
# Section of a model's engine, and its number of LoRA's rank.
ENGINES = {
    "actor": ("actor_rollout_ref.actor", "fsdp_config", "actor_rollout_ref.model.lora_rank"),
    "critic": ("critic", "fsdp", "critic.model.lora_rank"),
}
WEIGHT_BYTES, ADAM_BYTES = 4, 8
GIB = 2**30
# What contexts of CUDA and buffers took beside both: at least 2.0, at most 4.5.
LEAST_REST, MOST_REST = 1.5, 4.5


def problem(
    lookup: Callable[[str], Any], gpus: int, parameters: Mapping[str, int | None], memory_gib: float | None
) -> str | None:
    """Return why vLLM's share of a GPU cannot fit; None if it may, or if that is not known.

    The reference is in the host's memory with fsdp2, and small beside the rest otherwise: it is not counted.

    Args:
        lookup: Returns the value of a dotted key of verl's configuration.
        gpus: Number of GPUs of all nodes together.
        parameters: Number of parameters of each trained model, ``actor`` and ``critic``; None where it is not known.
        memory_gib: Memory of a GPU.
    """
    share = lookup(SHARE)
    if not memory_gib or not isinstance(share, (int, float)) or not _beside_each_other(lookup):
        return None
    needed = {
        role: count * _bytes(lookup, role) / _shards(lookup, role, gpus) / GIB
        for role, count in parameters.items()
        if count
    }
    models = sum(needed.values())
    if not models or share * memory_gib + models + LEAST_REST <= memory_gib:
        return None
    fits = math.floor(20 * (memory_gib - models - MOST_REST) / memory_gib) / 20
    listed = " and ".join(f"{gib:.1f} GiB of the {role}" for role, gib in needed.items() if gib)
    lower = f"Lower it to {fits:g}, train" if fits >= 0.1 else "Train"
    return (
        f"{SHARE}={share}: vLLM takes {share * memory_gib:.1f} of the {memory_gib:.1f} GiB of each GPU while it "
        f"generates, beside weights and optimizer state: {listed} on each of {gpus} GPU(s). {lower} on more GPUs, or "
        "keep them in the host's memory (param_offload and optimizer_offload of the engines)"
    )


def _beside_each_other(lookup: Callable[[str], Any]) -> bool:
    """Return True if vLLM generates on the GPUs that hold the models."""
    return (
        lookup("actor_rollout_ref.rollout.name") == "vllm"
        and lookup("trainer.device") == "cuda"
        and bool(lookup("actor_rollout_ref.hybrid_engine"))
        and lookup("trainer.v1.trainer_mode") == "sync"
    )


def _bytes(lookup: Callable[[str], Any], role: str) -> int:
    """Return the bytes on the GPUs for each parameter; 0 where another engine or number format has other ones."""
    section, engine, rank = ENGINES[role]
    settings = f"{section}.{engine}"
    if (
        not str(lookup(f"{section}.strategy")).startswith("fsdp")
        or lookup(f"{settings}.offload_policy")
        or lookup(f"{settings}.model_dtype") not in (None, "fp32")
    ):
        return 0
    weights = 0 if lookup(f"{settings}.param_offload") else WEIGHT_BYTES
    is_adam = str(lookup(f"{section}.optim.optimizer")).startswith("Adam")
    has_state = is_adam and not lookup(f"{settings}.optimizer_offload") and not lookup(rank)
    return weights + (ADAM_BYTES if has_state else 0)


def _shards(lookup: Callable[[str], Any], role: str, gpus: int) -> int:
    section, engine, _ = ENGINES[role]
    size = lookup(f"{section}.{engine}.fsdp_size")
    return size if isinstance(size, int) and 0 < size < gpus else gpus


def count_parameters(model: Path) -> int | None:
    """Return the number of parameters of a model folder, from the headers of its safetensors files; None without."""
    total = 0
    for file in model.glob("*.safetensors"):
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                if length > MAX_HEADER_BYTES:  # corrupt
                    return None
                header = json.loads(opened.read(length))
            total += sum(
                math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
            )
        except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError):
            return None  # loading the model will say what is wrong with it
    return total or None


def gpu_memory_gib() -> float | None:
    """Return the least memory of this node's GPUs by nvidia-smi, which includes what the driver keeps; None without."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = programs.run(command, 30).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) for line in lines if line.isdigit()]
    return min(sizes) / 1024 if sizes else None


def check(lookup: Callable[[str], Any], gpus: int, models: Mapping[str, str | None]) -> str | None:
    """Return what :func:`problem` finds for model folders, on this node.

    Args:
        lookup: Returns the value of a dotted key of verl's configuration.
        gpus: Number of GPUs of all nodes together.
        models: Folder of each model; the critic's is not used where none is trained.
    """
    if not _beside_each_other(lookup):
        return None
    roles = ["actor", *(["critic"] if ppo_rules.needs_critic(lookup) else [])]
    parameters = {role: count_parameters(Path(folder)) for role in roles if (folder := models.get(role))}
    return problem(lookup, gpus, parameters, gpu_memory_gib())
