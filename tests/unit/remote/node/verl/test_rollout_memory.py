"""A share of a GPU for vLLM beside the models that are trained, with sizes as measured on GPUs (docs/gpu.md)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.verl import rollout_memory

LLAMA_1B = 1_235_814_400
H100, H200 = 81559 / 1024, 143771 / 1024  # memory.total of nvidia-smi
VERL = {
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.hybrid_engine": True,
    "trainer.device": "cuda",
    "trainer.v1.trainer_mode": "sync",
    "actor_rollout_ref.model.lora_rank": 0,
    "critic.model.lora_rank": 0,
    **{
        key: value
        for section, engine in (("actor_rollout_ref.actor", "fsdp_config"), ("critic", "fsdp"))
        for key, value in {
            f"{section}.strategy": "fsdp2",
            f"{section}.optim.optimizer": "AdamW",
            f"{section}.{engine}.model_dtype": "fp32",
            f"{section}.{engine}.param_offload": False,
            f"{section}.{engine}.optimizer_offload": False,
            f"{section}.{engine}.offload_policy": False,
            f"{section}.{engine}.fsdp_size": -1,
        }.items()
    },
}


def problem(share: float, gpus: int, memory: float, critic: bool = True, **changes: Any) -> str | None:
    verl = VERL | {rollout_memory.SHARE: share} | {k.replace("__", "."): v for k, v in changes.items()}
    models = {"actor": LLAMA_1B} | ({"critic": LLAMA_1B} if critic else {})
    return rollout_memory.problem(verl.get, gpus, models, memory)


def test_what_has_run_on_gpus_is_not_refused() -> None:
    assert problem(0.5, 1, H200) is None
    assert problem(0.6, 1, H200, critic=False) is None
    assert problem(0.5, 1, H200, critic=False, actor_rollout_ref__model__lora_rank=16) is None


def test_the_recipe_fits_on_its_sixteen_gpus_of_80_gb() -> None:
    assert problem(0.9, 16, H100) is None


def test_a_share_that_cannot_fit_is_refused_with_the_sizes_and_one_that_fits() -> None:
    text = problem(0.9, 2, H100)
    assert text and text.startswith(
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.9: vLLM takes 71.7 of the 79.6 GiB of each GPU while it "
        "generates, beside weights and optimizer state: 6.9 GiB of the actor and 6.9 GiB of the critic on each of 2 "
        "GPU(s). Lower it to 0.75, train on more GPUs"
    )
    assert problem(0.75, 2, H100) is None


def test_models_that_leave_no_room_need_more_gpus() -> None:
    verl = VERL | {rollout_memory.SHARE: 0.5}
    text = rollout_memory.problem(verl.get, 1, {"actor": 8_030_000_000}, H100)
    assert text and "Train on more GPUs" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"actor_rollout_ref.rollout.name": "sglang"},
        {"trainer.v1.trainer_mode": "separate_async"},
        {"actor_rollout_ref.actor.fsdp_config.offload_policy": True, "critic.fsdp.offload_policy": True},
        {"actor_rollout_ref.actor.strategy": "megatron", "critic.strategy": "megatron"},
    ],
)
def test_settings_with_other_sizes_are_not_judged(changes: dict[str, Any]) -> None:
    verl = VERL | {rollout_memory.SHARE: 0.95} | changes
    models = {"actor": LLAMA_1B, "critic": LLAMA_1B}
    assert rollout_memory.problem(verl.get, 1, models, H100) is None


def test_without_the_memory_of_a_gpu_nothing_is_refused() -> None:
    verl = VERL | {rollout_memory.SHARE: 0.95}
    assert rollout_memory.problem(verl.get, 1, {"actor": LLAMA_1B}, None) is None


def test_parameters_are_counted_from_the_headers_of_all_shards(tmp_path: Path) -> None:
    for number, shape in enumerate(([2, 3], [4])):
        entry = {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
        (tmp_path / f"model-{number}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert rollout_memory.count_parameters(tmp_path) == 10
    (tmp_path / "model-2.safetensors").write_bytes(b"cut")
    assert rollout_memory.count_parameters(tmp_path) is None
    assert rollout_memory.count_parameters(tmp_path / "nothing") is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02" + bytes(7) + b"[]"])
def test_parameters_of_a_corrupt_file_are_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert rollout_memory.count_parameters(tmp_path) is None
