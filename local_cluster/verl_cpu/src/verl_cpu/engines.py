"""FSDP engines for device ``cpu``. Use ``strategy: fsdp2``: torch's FSDP1 does not run on CPUs."""

from __future__ import annotations

from typing import Any

import verl.utils.model
from transformers import AutoModelForTokenClassification
from verl.workers.engine.base import EngineRegistry
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


class CPUEngineWithLMHead(FSDPEngineWithLMHead):
    """verl's own engine; a class of its own because a registry key may be taken once only."""


class CPUEngineWithValueHead(FSDPEngineWithValueHead):
    """The critic's engine, with the attention that the configuration names.

    ``verl.utils.model.load_valuehead_model`` asks for flash_attention_2 whatever the configuration says.
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
