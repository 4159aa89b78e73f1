"""LoRA adapters: merge one into its base weights, or make a folder of its own of it.

verl.model_merger (0.9.1) leaves a model trained with LoRA as the base weights with the adapter in a folder beside them,
both rounded to bfloat16. Requires torch, transformers, peft and safetensors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llm_bridge.remote.node.common.job_io import JobError, log_line, read_json, write_json
from llm_bridge.remote.node.hub.loadable import ADAPTER_CONFIG as CONFIG
from llm_bridge.remote.node.hub.loadable import ADAPTER_WEIGHTS as WEIGHTS
from llm_bridge.remote.node.verl.checkpoints import LORA_META

FOLDER = "lora_adapter"  # of verl.model_merger
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
# Files of a model that the folder of an adapter does not have.
MODEL_FILES = ("config.json", "generation_config.json", *WEIGHT_FILES)


def find(model: Path, checkpoint: Path) -> Path | None:
    """Return the folder of the adapter that verl.model_merger wrote; None for a model whose weights were all trained.

    Args:
        model: Output of verl.model_merger.
        checkpoint: Directory with the shards, for error messages.

    Raises:
        JobError: The adapter's scale is unknown, or the adapter was not trained.
    """
    adapter = model / FOLDER
    if not adapter.is_dir():
        return None
    config = read_json(adapter / CONFIG)
    # Without it verl.model_merger writes alpha 0, with which the adapter has no effect.
    if not config or not config.get("lora_alpha"):
        raise JobError(
            f"the checkpoint holds a LoRA adapter whose lora_alpha is unknown: {checkpoint / LORA_META} is "
            f"missing. Remove {checkpoint}, and run the training stage again: it resumes from the checkpoint before.",
            kind="checkpoint_incompatible",
        )
    if not _is_trained(adapter / WEIGHTS):
        raise JobError(
            f"training changed nothing: every B matrix of the LoRA adapter in {checkpoint} is zero, as before "
            "training. Check the loss or the rewards in the training's log, and the recipe's verl settings: a learning "
            "rate of 0; trainer.critic_warmup, before which the actor is not trained.",
            kind="bad_config",
        )
    return adapter


def _is_trained(weights: Path) -> bool:
    """Return True if a B matrix has a number other than zero; LoRA starts with zeros."""
    from safetensors import safe_open

    with safe_open(str(weights), framework="pt") as opened:
        names = [name for name in opened.keys() if "lora_B" in name]  # noqa: SIM118 (opened is not a dict)
        return any(bool(opened.get_tensor(name).any()) for name in names)


def merge_into(model: Path, adapter: Path) -> None:
    """Replace the weights in a folder by the sum of weights and adapter, and remove the adapter.

    Configuration, generation configuration and tokenizer stay as they are, and so does the type of the numbers: the sum
    is made in float32 and rounded once.

    Args:
        model: Folder of the base weights.
        adapter: Folder of the adapter.

    Raises:
        JobError: peft does not find the modules of the adapter in the model, or the sum is not finite.
    """
    import torch
    import transformers
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    config = transformers.AutoConfig.from_pretrained(str(model), local_files_only=True)
    model_class: Any = getattr(transformers, config.architectures[0])
    base = model_class.from_pretrained(str(model), dtype=torch.float32, local_files_only=True)
    peft_model = PeftModel.from_pretrained(base, str(adapter))
    with safe_open(str(adapter / WEIGHTS), framework="pt") as opened:
        trained = set(opened.keys())
    # peft ignores tensors for which the model has no place.
    if lost := sorted(trained - set(get_peft_model_state_dict(peft_model))):
        raise JobError(
            f"the LoRA adapter cannot be merged: peft does not find the place of {len(lost)} of its {len(trained)} "
            f"tensors in {config.architectures[0]}, as {lost[0]}. Choose other target_modules, such as all-linear, and "
            "train again.",
            kind="bad_config",
        )
    try:
        whole = peft_model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise JobError(f"the LoRA adapter cannot be merged: {error}", kind="bad_config") from error
    merged = model.with_name(f"{model.name}.merged")
    shutil.rmtree(merged, ignore_errors=True)
    whole.to(config.dtype or torch.bfloat16).save_pretrained(str(merged))
    _remove(model, WEIGHT_FILES)
    for pattern in WEIGHT_FILES:
        for file in merged.glob(pattern):
            file.rename(model / file.name)
    shutil.rmtree(merged)
    shutil.rmtree(adapter)
    log_line(f"merged the LoRA adapter, {len(trained)} tensors, into the weights")


def keep_only(model: Path, adapter: Path, base: str) -> None:
    """Make the folder one of the adapter and the tokenizer, without the base weights.

    Args:
        model: Folder of the base weights and the tokenizer.
        adapter: Folder of the adapter, below ``model``.
        base: Repository of the base model on the Hub, OWNER/NAME.
    """
    _remove(model, MODEL_FILES)
    config = {**read_json(adapter / CONFIG), "base_model_name_or_path": base, "inference_mode": True}
    (adapter / WEIGHTS).rename(model / WEIGHTS)
    write_json(model / CONFIG, config)
    shutil.rmtree(adapter)


def _remove(folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()
