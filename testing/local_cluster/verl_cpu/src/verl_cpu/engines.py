"""FSDP engines for device ``cpu``. Use ``strategy: fsdp2``: torch's FSDP1 does not run on CPUs."""

from __future__ import annotations

from typing import Any

import verl.utils.model
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import AutoModelForTokenClassification
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead


def _load_valuehead_model(
    local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool
) -> Any:
    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        trust_remote_code=trust_remote_code,
        attn_implementation=getattr(model_config, "_attn_implementation", None) or "sdpa",
    )


def _unpinned(pin_memory: bool = True) -> CPUOffloadPolicy:
    """Return the policy of the reference model without pinned memory, which needs an accelerator."""
    return CPUOffloadPolicy(pin_memory=False)


class _Unpinned:
    """Mixin of an engine whose parameters are never pinned."""

    def _build_fsdp_module(self, module: Any) -> Any:
        transformer_impl.CPUOffloadPolicy = _unpinned
        try:
            return super()._build_fsdp_module(module)  # type: ignore[misc]
        finally:
            transformer_impl.CPUOffloadPolicy = CPUOffloadPolicy


class CPUEngineWithLMHead(_Unpinned, FSDPEngineWithLMHead):
    """verl's engine; a separate class, because a registry key can be used only once."""


class CPUEngineWithValueHead(_Unpinned, FSDPEngineWithValueHead):
    """Engine of the critic, with the configured attention.

    ``verl.utils.model.load_valuehead_model`` requests flash_attention_2 independent of the configuration.
    """

    def _build_module(self) -> Any:
        original = verl.utils.model.load_valuehead_model
        verl.utils.model.load_valuehead_model = _load_valuehead_model
        try:
            return super()._build_module()
        finally:
            verl.utils.model.load_valuehead_model = original


def register() -> None:
    """Add both engines for ``strategy`` fsdp and fsdp2 on device ``cpu``."""
    EngineRegistry.register("language_model", ["fsdp", "fsdp2"], "cpu")(CPUEngineWithLMHead)
    EngineRegistry.register("value_model", ["fsdp", "fsdp2"], "cpu")(CPUEngineWithValueHead)
