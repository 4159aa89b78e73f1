"""The reward of a run as one function: what verl imports, and what the trial calls.

The settings (key ``reward`` of settings.json) are those of ``config/reward.py``: ``terms`` with name, weight and
options, and ``files`` with the texts of the user's files.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import Settings
from llm_bridge.remote.node.rewards import math_verify
from llm_bridge.remote.node.rewards.built_in import REWARDS

NAME = "compute_score"
MODULE = "llm_bridge.remote.node.rewards.function"


def folder(attempt: Path) -> Path:
    """Return the folder of an attempt's directory that :func:`write_files` writes to."""
    return attempt / attempt_dir.REWARDS


def write_files(reward: Settings, attempt: Path) -> None:
    """Write a reward and the user's files into an attempt's directory, where the processes on all nodes read them."""
    attempt_dir.write_json(str(folder(attempt) / attempt_dir.REWARD), reward)
    for name, text in reward.get("files", {}).items():
        attempt_dir.write(str(file_of(name, attempt)), text)


def file_of(name: str, attempt: Path) -> Path:
    """Return the path of a user's file in an attempt's directory."""
    return folder(attempt) / f"{name}.py"


def verl_settings(reward: Settings, attempt: Path, verl: dict[str, Any]) -> dict[str, Any]:
    """Return verl's settings of a reward.

    Args:
        reward: The settings' ``reward``.
        attempt: The attempt's directory.
        verl: The recipe's verl settings.
    """
    found: dict[str, Any] = {}
    function = "reward.custom_reward_function"
    terms = reward.get("terms", [])
    if is_one_file(reward):
        found[f"{function}.path"] = str(file_of(terms[0]["name"], attempt))
        if options := terms[0].get("options"):
            found[f"+{function}.reward_kwargs"] = options
    elif terms:
        found[f"{function}.path"] = f"pkg://{MODULE}"
        found[f"+{function}.reward_kwargs"] = {"reward_file": str(folder(attempt) / attempt_dir.REWARD)}
    if terms:
        found[f"{function}.name"] = NAME
    if model := reward.get("model"):
        found["reward.reward_model.enable"] = True
        found["reward.reward_model.model_path"] = model
        found["reward.reward_model.rollout.name"] = verl.get("actor_rollout_ref.rollout.name", "vllm")
        found["reward.reward_model.rollout.tensor_model_parallel_size"] = 1
    if url := reward.get("sandbox_url"):
        found["reward.sandbox_fusion.url"] = url
        found["reward.sandbox_fusion.max_concurrent"] = reward.get("sandbox_max_concurrent", 64)
        found["reward.sandbox_fusion.memory_limit_mb"] = reward.get("sandbox_memory_mb", 1024)
    return found


def is_one_file(reward: Settings) -> bool:
    """Return True if the reward is one file of the user that verl can call directly.

    verl changes the type of options that are lists or mappings, and the meaning of ``${`` in text.
    """
    terms = reward.get("terms", [])
    if (
        len(terms) != 1
        or terms[0]["name"] not in reward.get("files", {})
        or terms[0].get("weight", 1.0) != 1.0
    ):
        return False
    options = terms[0].get("options", {}).values()
    return not any(isinstance(option, (list, dict)) or "${" in str(option) for option in options)


def load(reward: Settings, attempt: Path) -> Callable[..., Any]:
    """Return the function of a reward's terms, as verl calls it; a coroutine function for such a one of the user.

    Args:
        reward: The settings' ``reward``.
        attempt: The directory that :func:`write_files` wrote to.
    """
    functions = [_term(term, reward, attempt) for term in reward["terms"]]
    if len(functions) == 1 and reward["terms"][0].get("weight", 1.0) == 1.0:
        return functions[0]
    names = _distinct([term["name"] for term in reward["terms"]])
    weights = [term.get("weight", 1.0) for term in reward["terms"]]

    def weighted_sum(**arguments: Any) -> dict[str, Any]:
        parts = {name: _score(function(**arguments)) for name, function in zip(names, functions, strict=True)}
        total = sum(weight * parts[name] for name, weight in zip(names, weights, strict=True))
        return {"score": total, **{f"reward_{name}": part for name, part in parts.items()}}

    return weighted_sum


def compute_score(reward_file: str, **arguments: Any) -> Any:
    """Return the score of a response; verl calls this.

    Args:
        reward_file: File that :func:`write_files` wrote.
        arguments: The arguments of verl's rewards.
    """
    return result_of(_load_from(reward_file)(**arguments))


@functools.lru_cache(maxsize=None)
def _load_from(reward_file: str) -> Callable[..., Any]:
    path = Path(reward_file)
    return load(json.loads(path.read_text(encoding="utf-8")), path.parents[1])


def _term(term: dict[str, Any], reward: Settings, attempt: Path) -> Callable[..., Any]:
    name, options = term["name"], term.get("options", {})
    if name not in reward.get("files", {}):
        if name == "math":
            math_verify.start()  # takes seconds, which should not count for the first call
        return functools.partial(REWARDS[name], **options)
    spec = importlib.util.spec_from_file_location(f"llm_bridge_reward_{name}", file_of(name, attempt))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, NAME, None)
    if not callable(found):
        raise TypeError(f"{NAME} is no function but {found!r:.80}: define it in include/rewards/{name}.py")
    return functools.partial(found, **options)


def result_of(returned: Any) -> Any:
    """Return what a function has returned; that of a coroutine function is awaited (verl calls it in a thread)."""
    if not inspect.isawaitable(returned):
        return returned

    async def wait() -> Any:
        return await returned

    return asyncio.run(wait())


def _score(returned: Any) -> Any:
    result = result_of(returned)
    return result["score"] if isinstance(result, dict) else result


def _distinct(names: list[str]) -> list[str]:
    return [name if names.index(name) == i else f"{name}_{i}" for i, name in enumerate(names)]
