"""Names of verl's settings that changed after the scripts that llm-bridge replaces were written.

Source of the names: verl 0.9.1's ``sft_trainer_engine.yaml`` and ``ppo_trainer.yaml`` against 0.5.0's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

Training = Literal["sft", "ppo"]

RENAMED = {
    "sft": {
        "model.partial_pretrain": "model.path",
        "model.strategy": "engine.strategy",
    },
    "ppo": {},
}
RENAMED_PREFIX = {"sft": {}, "ppo": {"critic.model.fsdp_config.": "critic.fsdp."}}

# Removed without a successor of the same meaning -> what to do instead.
REMOVED = {
    "sft": {
        "data.prompt_key": "the prepare stage writes a 'messages' column; remove this key",
        "data.response_key": "the prepare stage writes a 'messages' column; remove this key",
        "data.prompt_dict_keys": "the prepare stage writes a 'messages' column; remove this key",
        "data.response_dict_keys": "the prepare stage writes a 'messages' column; remove this key",
    },
    "ppo": {},
}

# Keys that llm-bridge sets from the run, the stage before and the allocation -> the setting that decides the value.
MANAGED = {
    "sft": {
        "model.path": "the recipe's base_model",
        "data.train_files": "the prepare stage",
        "data.val_files": "the prepare stage",
        "trainer.default_local_dir": "the run's directory",
        "trainer.nnodes": "sft.nodes",
        "trainer.n_gpus_per_node": "sft.gpus_per_node",
        "trainer.device": "the cluster file's device",
        "trainer.logger": "the recipe's logger",
        "trainer.project_name": "wandb.project",
        "trainer.experiment_name": "the run's name",
    },
    "ppo": {
        "actor_rollout_ref.model.path": "ppo.init_from and base_model",
        "critic.model.path": "ppo.init_from and base_model",
        "data.train_files": "the prepare stage",
        "data.val_files": "the prepare stage",
        "trainer.default_local_dir": "the run's directory",
        "trainer.nnodes": "ppo.nodes",
        "trainer.n_gpus_per_node": "ppo.gpus_per_node",
        "trainer.device": "the cluster file's device",
        "trainer.logger": "the recipe's logger",
        "trainer.project_name": "wandb.project",
        "trainer.experiment_name": "the run's name",
    },
}


# Training stage -> verl's section with the model that it trains.
MODEL: dict[Training, str] = {"sft": "model", "ppo": "actor_rollout_ref.model"}
# Training stage -> verl's section with what that model's checkpoints hold.
CHECKPOINT: dict[Training, str] = {"sft": "checkpoint", "ppo": "actor_rollout_ref.actor.checkpoint"}
# Modules that the output layer may share its weights with, and the output layer itself, in the names of target_modules.
TIED_MODULES = ("embed", "wte", "lm_head")

# Arguments for a chat template, which the tokenizer's apply_chat_template passes on, and those of its own, which verl
# and llm-bridge set.
TEMPLATE_OPTIONS = "data.apply_chat_template_kwargs"
_OWN_OPTIONS = (
    *("conversation", "messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message"),
    *("return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation", "max_length"),
    "tokenizer_kwargs",
)

# YAML 1.1 reads 1e-6, without a dot, as a string; verl would get the string.
_FLOAT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings under dotted keys: ``{"data": {"max_length": 256}}`` becomes ``{"data.max_length": 256}``.

    The string ``1e-6`` becomes a number.

    Args:
        settings: Nested, with dotted keys, or both.
        prefix: Put before every key.
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{path}."))
        else:
            is_number = isinstance(value, str) and _FLOAT.fullmatch(value)
            flat[path] = float(value) if is_number else value
    return flat


def translate(stage: Training, settings: dict[str, Any]) -> dict[str, Any]:
    """Check the settings of one stage and return them flat, under dotted keys.

    Args:
        stage: ``sft`` or ``ppo``.
        settings: verl's settings, nested or with dotted keys; a leading ``+`` (hydra's "add") is kept.

    Raises:
        ValueError: A key was renamed or removed in verl, is set by llm-bridge, or trains an adapter that cannot be
            merged. The message names the key to use instead.
    """
    flat = flatten(settings)
    problems = []
    for key in flat:
        plain = key.lstrip("+")
        new = _new_name(stage, plain)
        if not _is_key(plain):
            problems.append(f"{key!r} is not a verl key: letters, digits, '_' and dots only")
        elif (new or plain) in MANAGED[stage]:
            problems.append(
                f"{plain} is set by llm-bridge from {MANAGED[stage][new or plain]}: remove it here"
            )
        elif new:
            problems.append(f"{plain} was renamed in verl: use {new}")
        elif plain in REMOVED[stage]:
            problems.append(f"{plain} was removed from verl: {REMOVED[stage][plain]}")
    problems += _template_problems(flat)
    problems += _lora_problems(stage, {key.lstrip("+"): value for key, value in flat.items()})
    if problems:
        raise ValueError("; ".join(problems))
    return flat


def _template_problems(flat: dict[str, Any]) -> Iterator[str]:
    """Yield the arguments for the chat template that would be given twice, or are none."""
    for key, value in flat.items():
        plain = key.lstrip("+")
        if plain == TEMPLATE_OPTIONS and value not in (None, {}):
            yield f"{plain} must be a mapping, such as {{enable_thinking: false}}, not {value!r}"
        option = plain.removeprefix(f"{TEMPLATE_OPTIONS}.")
        if option != plain and option.split(".")[0] in _OWN_OPTIONS:
            yield (
                f"{plain}: verl sets {option.split('.')[0]} itself. Remove it; {TEMPLATE_OPTIONS} is for variables of "
                "the chat template, such as enable_thinking"
            )


def _is_key(text: str) -> bool:
    return all(part.replace("_", "").isalnum() and part.isascii() for part in text.split("."))


def trains_adapter(stage: Training, flat: dict[str, Any]) -> bool:
    """Return True if a stage trains a LoRA adapter instead of all weights.

    Args:
        stage: ``sft`` or ``ppo``.
        flat: Result of :func:`translate`.
    """
    key = f"{MODEL[stage]}.lora_rank"
    return any(name.lstrip("+") == key and not _is_off(value) for name, value in flat.items())


def _lora_problems(stage: Training, flat: dict[str, Any]) -> Iterator[str]:
    """Yield the settings of LoRA with which stage merge could not make the model that was trained.

    verl.model_merger (0.9.1) reads FSDP checkpoints with base weights and adapter, and keeps of the adapter's
    configuration only rank, alpha, and the last part of the names of its modules.
    """
    model = MODEL[stage]
    for key, value in flat.items():
        if _is_off(value):
            continue
        if key.endswith((".lora.rank", ".lora.adapter_path")):
            yield (
                f"{key}={value!r} is LoRA of verl's Megatron engine, and llm-bridge merges checkpoints of FSDP: use "
                f"{model}.lora_rank, {model}.lora_alpha and {model}.target_modules"
            )
        elif key.endswith(".lora_adapter_path"):
            yield (
                f"{key}={value!r} trains an existing adapter further, and verl.model_merger does not keep such an "
                "adapter's configuration: merge it into its base model, and use that model as base_model"
            )
        elif key.endswith(".lora_rank") and key != f"{model}.lora_rank":
            yield (
                f"{key}={value!r}: llm-bridge supports LoRA for {model} only (the model that is published). Remove the "
                "key to train all weights"
            )
    rank, alpha = flat.get(f"{model}.lora_rank"), flat.get(f"{model}.lora_alpha", 1)
    if _is_off(rank):
        return
    for key, value in ((f"{model}.lora_rank", rank), (f"{model}.lora_alpha", alpha)):
        if type(value) is not int or value <= 0:
            yield f"{key}={value!r} must be a whole number above 0: an adapter is scaled by lora_alpha / lora_rank"
    if flat.get(f"{model}.target_parameters"):
        yield f"{model}.target_parameters: verl.model_merger does not keep it. Use {model}.target_modules"
    targets = flat.get(f"{model}.target_modules")
    if any(name in str(targets) for name in TIED_MODULES):
        yield (
            f"{model}.target_modules={targets!r} names embeddings or the output layer, whose adapters cannot be merged "
            "(their weights may be one tensor): remove them, or use all-linear, which leaves both out"
        )
    if flat.get(f"{CHECKPOINT[stage]}.save_lora_only"):
        yield (
            f"{CHECKPOINT[stage]}.save_lora_only leaves the base weights out of the checkpoints, and "
            "verl.model_merger needs them: remove it"
        )


def _is_off(value: Any) -> bool:
    """Return True if a value leaves LoRA off; one that is not a number turns it on."""
    if value in (None, "", False):
        return True
    try:
        return float(value) <= 0
    except (TypeError, ValueError):
        return False


def _new_name(stage: str, key: str) -> str | None:
    for old, new in RENAMED_PREFIX[stage].items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return RENAMED[stage].get(key)
