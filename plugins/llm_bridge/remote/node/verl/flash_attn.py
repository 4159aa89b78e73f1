"""Say before GPUs are held which settings need flash-attn, where the environment does not have it.

In verl 0.9.1, with its FSDP engine on CUDA devices:

* Attention: ``HFModelConfig.__post_init__`` (verl/workers/config/model.py) requests flash_attention_2 unless
  ``override_config.attn_implementation`` is set. Without flash-attn, transformers refuses it, or takes the kernel from
  the Hub if the package kernels is installed (modeling_utils.py: _check_and_adjust_attn_implementation).
* The critic: ``load_valuehead_model`` (verl/utils/model.py) requests flash_attention_2 whatever the settings are.
* Ulysses: ``apply_monkey_patch`` (verl/models/transformers/monkey_patch.py) adds the exchange between GPUs to flash
  attention only; with another one, each GPU would attend to its own part of the sequences, without an error.

Other parts do without: ``use_remove_padding`` (verl/utils/attention_utils.py has replacements, and
``FSDPEngineWithLMHead.prepare_model_inputs`` passes packed rows without a mask, which transformers makes from their
position_ids: masking_utils.py, find_packed_sequence_indices), and log-probabilities (hooks/log_probs.py).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llm_bridge.remote.node.common.job_io import JobError, log_line

FLASH = "flash_attention_2"
INSTALL = "install flash-attn (requirements-cluster-vllm.txt)"


class Keys(NamedTuple):
    """Dotted keys of verl's configuration of a training.

    Attributes:
        model: Section of the model.
        engine: Section of its FSDP engine.
        strategy: The engine's kind.
    """

    model: str
    engine: str
    strategy: str


SFT = Keys("model", "engine", "engine.strategy")
PPO = Keys(
    "actor_rollout_ref.model", "actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.actor.strategy"
)


def check(lookup: Callable[[str], Any], keys: Keys, critic: bool = False) -> None:
    """Refuse a training for GPUs that needs flash-attn where it is missing, and warn of one that does without it.

    Args:
        lookup: Returns the value of a dotted key of verl's complete configuration, None where there is none.
        keys: The training's keys.
        critic: The training has a critic.

    Raises:
        JobError: The training could not work in this environment.
    """
    if lookup("trainer.device") != "cuda":
        return
    parallel, attention = _ulysses(lookup, keys), _attention(lookup, keys)
    own_code = lookup(f"{keys.model}.external_lib")
    if parallel != 1 and not attention.startswith("flash_attention") and not own_code:
        raise JobError(
            f"{keys.engine}.ulysses_sequence_parallel_size={parallel} exchanges sequences between GPUs in flash "
            f"attention only, and {keys.model}.override_config.attn_implementation is {attention}, with which each GPU "
            f"would attend to its own part of them, without an error: set the first to 1, or the second to {FLASH}",
            kind="bad_config",
        )
    if installed("flash-attn"):
        return
    missing = "flash-attn is not installed in this environment"
    found = [*_problems(lookup, keys), *(_critic_problems(lookup) if critic else [])]
    models = (keys.model, "critic.model") if critic else (keys.model,)
    # A module of the user's may replace the functions of verl that need flash-attn.
    if found and not installed("kernels") and not any(lookup(f"{model}.external_lib") for model in models):
        raise JobError(f"{missing}. {'; '.join(found)}", kind="bad_config")
    for problem in found:
        log_line(
            f"WARNING: {missing}. {problem}. This may work with the package kernels or the recipe's external_lib"
        )
    if not found:
        log_line(f"WARNING: {missing}: {_cost(lookup, keys)}. To avoid this, {INSTALL}")


def installed(distribution: str) -> bool:
    """Return True if a distribution is installed.

    It is not imported, because a node without GPUs may lack a CUDA library; and its module is not looked for, because
    flash-attn-4 has one of the same name, which verl cannot use.
    """
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _attention(lookup: Callable[[str], Any], keys: Keys) -> str:
    return str(lookup(f"{keys.model}.override_config.attn_implementation") or FLASH)


def _ulysses(lookup: Callable[[str], Any], keys: Keys) -> int:
    found: int = lookup(f"{keys.engine}.ulysses_sequence_parallel_size") or 1
    return found if _is_fsdp(lookup, keys.strategy) else 1


def _problems(lookup: Callable[[str], Any], keys: Keys) -> Iterator[str]:
    if not _is_fsdp(lookup, keys.strategy):
        return
    if (parallel := _ulysses(lookup, keys)) != 1:
        yield (
            f"{keys.engine}.ulysses_sequence_parallel_size={parallel} works with flash-attn only: set it to 1, or "
            f"{INSTALL}"
        )
    if _attention(lookup, keys) == FLASH:
        key = f"{keys.model}.override_config.attn_implementation"
        yield f"{key} is {FLASH}, verl's default, which needs it: set +{key} to sdpa (or eager), or {INSTALL}"


def _critic_problems(lookup: Callable[[str], Any]) -> Iterator[str]:
    if _is_fsdp(lookup, "critic.strategy"):
        yield (
            f"algorithm.adv_estimator={lookup('algorithm.adv_estimator')} trains a critic, which verl 0.9.1 loads with "
            f"{FLASH} whatever critic.model.override_config.attn_implementation is: {INSTALL}, or choose an algorithm "
            "without a critic (ppo.algorithm: grpo, dr_grpo, rloo, reinforce_plus_plus, remax, dapo or gspo)"
        )


def _is_fsdp(lookup: Callable[[str], Any], strategy: str) -> bool:
    return str(lookup(strategy)).startswith("fsdp")


def _cost(lookup: Callable[[str], Any], keys: Keys) -> str:
    if not _is_fsdp(lookup, keys.strategy):
        return "engines other than FSDP may need it"
    attention = f"attention is {_attention(lookup, keys)}"
    if lookup(f"{keys.model}.use_remove_padding"):
        return (
            f"{attention}, which with {keys.model}.use_remove_padding=true compares each token with those of every row "
            "of its micro batch: memory and time grow with the square of the tokens. Set it to false"
        )
    return f"{attention}, and rows are padded to the longest of their micro batch"
