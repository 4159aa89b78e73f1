"""verl's settings that were renamed since the scripts that llm-bridge replaces; the only place that knows.

Source of the names: verl 0.9.1's ``sft_trainer_engine.yaml`` and ``ppo_trainer.yaml`` against 0.5.0's.
"""

from __future__ import annotations

import re
from typing import Any

RENAMED = {
    "sft": {
        "model.partial_pretrain": "model.path",
        "model.strategy": "engine.strategy",
    },
    "ppo": {},
}
RENAMED_PREFIX = {"sft": {}, "ppo": {"critic.model.fsdp_config.": "critic.fsdp."}}

# Gone without a successor of the same meaning: what to do instead.
GONE = {
    "sft": {
        "data.prompt_key": "the prepare stage writes a 'messages' column; remove this key",
        "data.response_key": "the prepare stage writes a 'messages' column; remove this key",
        "data.prompt_dict_keys": "the prepare stage writes a 'messages' column; remove this key",
        "data.response_dict_keys": "the prepare stage writes a 'messages' column; remove this key",
    },
    "ppo": {},
}

# What llm-bridge sets itself, from the run, the stage before and the allocation.
OURS = {
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


# YAML 1.1 takes 1e-6, without a dot, for a word; verl would get the word.
_FLOAT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"data": {"max_length": 256}}`` and ``{"data.max_length": 256}`` both become the latter.

    The word ``1e-6`` becomes a number.
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


def translate(stage: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Check ``settings`` for one stage and return them under verl's current names, flat.

    :param stage: ``sft`` or ``ppo``.
    :param settings: verl settings, nested or with dotted keys; a ``+`` in front (hydra's "add") is kept.
    :raises ValueError: a key was renamed or is gone, or is one that llm-bridge sets itself. The message
        names the key to write instead.
    """
    flat = flatten(settings)
    problems = []
    for key in flat:
        plain = key.lstrip("+")
        new = _new_name(stage, plain)
        if not _is_key(plain):
            problems.append(f"{key!r} is not a verl key: letters, digits, '_' and dots only")
        elif (new or plain) in OURS[stage]:
            problems.append(f"{plain} is set by llm-bridge from {OURS[stage][new or plain]}: remove it here")
        elif new:
            problems.append(f"{plain} is called {new} in today's verl: write that")
        elif plain in GONE[stage]:
            problems.append(f"{plain} is gone from verl: {GONE[stage][plain]}")
    if problems:
        raise ValueError("; ".join(problems))
    return flat


def _is_key(text: str) -> bool:
    return all(part.replace("_", "").isalnum() and part.isascii() for part in text.split("."))


def _new_name(stage: str, key: str) -> str | None:
    for old, new in RENAMED_PREFIX[stage].items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return RENAMED[stage].get(key)
