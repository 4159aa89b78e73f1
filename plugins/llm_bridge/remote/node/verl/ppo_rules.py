"""Combinations of settings that verl 0.9.1's PPO ignores, gets wrong, or refuses only on the GPUs.

``check`` applies these rules to the recipe before anything is submitted, and the programs ``prepare`` and ``ppo`` to
verl's complete configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_bridge.remote.node.verl.sft_rules import divisors

# Returns the value of a dotted key; None if it is not set.
Lookup = Callable[[str], Any]

ACTOR = "actor_rollout_ref.actor"
N = "actor_rollout_ref.rollout.n"
ESTIMATOR = "algorithm.adv_estimator"
FILTER = "algorithm.filter_groups"

# verl's defaults of the keys that the rules read (trainer/config/ppo_trainer.yaml and the files that it includes).
DEFAULTS = {
    ESTIMATOR: "gae",
    f"{FILTER}.enable": False,
    f"{FILTER}.metric": "reward",
    f"{FILTER}.max_num_gen_batches": 0,
    "trainer.use_v1": True,
    "trainer.critic_warmup": 0,
    "data.train_batch_size": 1024,
    N: 1,
    f"{ACTOR}.strategy": "fsdp",
    f"{ACTOR}.ppo_mini_batch_size": 256,
    f"{ACTOR}.use_dynamic_bsz": False,
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.clip_ratio_low": 0.2,
    f"{ACTOR}.clip_ratio_high": 0.2,
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": 1,
    "reward.reward_model.enable": False,
    "reward.reward_model.enable_resource_pool": False,
}
# Estimators whose baseline comes from the other answers to the same prompt (ppo/core_algos.py).
GROUPED = (
    *("grpo", "grpo_vectorized", "grpo_passk", "gdpo", "rloo", "rloo_vectorized", "opo"),
    "reinforce_plus_plus_baseline",
)


def in_recipe(verl: Mapping[str, Any]) -> Lookup:
    """Return the lookup in a recipe's ``ppo.verl`` (dotted keys), with verl's defaults for what it does not set."""
    given = {key.lstrip("+"): value for key, value in verl.items()}
    return lambda key: given.get(key, DEFAULTS.get(key))


def needs_critic(lookup: Lookup) -> bool:
    """Return True if verl trains a critic (``need_critic`` in verl/trainer/ppo/utils.py)."""
    enable = lookup("critic.enable")
    return bool(enable) if enable is not None else lookup(ESTIMATOR) == "gae"


def unused_critic_keys(verl: Mapping[str, Any]) -> list[str]:
    """Return the settings for a critic in a recipe's ``ppo.verl`` whose algorithm has none."""
    if needs_critic(in_recipe(verl)):
        return []
    return [key for key in verl if key.lstrip("+").startswith("critic.") and key != "critic.enable"]


def problems(lookup: Lookup, gpus: int) -> Iterator[str]:
    """Yield what is wrong with the settings of PPO.

    Args:
        lookup: verl's settings.
        gpus: Number of GPUs of all nodes together.
    """
    yield from _wrong_numbers(lookup)
    yield from _wrong_algorithm(lookup)
    yield from _wrong_filter(lookup)
    yield from _wrong_batches(lookup, gpus)


def _wrong_algorithm(lookup: Lookup) -> Iterator[str]:
    estimator, n = lookup(ESTIMATOR), lookup(N)
    if estimator in GROUPED and type(n) is int and n < 2:
        yield (
            f"{N}={n}: {ESTIMATOR}={estimator} compares the answers to one prompt with each other, and verl would "
            "train without a baseline. Set it to 2 or more, such as 8"
        )
    if estimator == "remax" and lookup("trainer.use_v1"):
        yield (
            f"{ESTIMATOR}=remax needs trainer.use_v1=false: verl's V1 trainer does not generate the greedy answers "
            "that remax compares with"
        )
    if (warmup := lookup("trainer.critic_warmup")) and not needs_critic(lookup):
        yield (
            f"trainer.critic_warmup={warmup}: there is no critic with {ESTIMATOR}={estimator}, and nothing would be "
            "trained in these steps. Remove it"
        )
    low, high = (lookup(f"{ACTOR}.clip_ratio_{end}") for end in ("low", "high"))
    clip = lookup(f"{ACTOR}.clip_ratio")
    default = DEFAULTS[f"{ACTOR}.clip_ratio"]
    if clip != default and low == high == default:
        yield (
            f"{ACTOR}.clip_ratio={clip} has no effect in verl 0.9.1: set {ACTOR}.clip_ratio_low and "
            f"{ACTOR}.clip_ratio_high"
        )


def _wrong_filter(lookup: Lookup) -> Iterator[str]:
    if not lookup(f"{FILTER}.enable"):
        return
    if not lookup("trainer.use_v1"):
        yield f"{FILTER}.enable has no effect with trainer.use_v1=false: remove one of both"
    elif lookup(f"{FILTER}.max_num_gen_batches"):
        yield (
            f"{FILTER}.max_num_gen_batches has no effect with verl's V1 trainer: use "
            f"{FILTER}.max_inflight_gen_batches, the number of batches that are generated at once"
        )
    if not lookup(f"{FILTER}.metric"):
        yield f"{FILTER}.metric is empty: set it to reward, or to a key that the reward function returns"
    pool = lookup("reward.reward_model.enable_resource_pool")
    if lookup("reward.reward_model.enable") and not pool:
        yield (
            f"{FILTER}.enable needs the rewards while answers are generated, and a reward model on the GPUs that train "
            "gives them later: set reward.reward_model.enable_resource_pool=true with GPUs of its own"
        )


def _wrong_numbers(lookup: Lookup) -> Iterator[str]:
    for key in ("data.train_batch_size", N, f"{ACTOR}.ppo_mini_batch_size"):
        value = lookup(key)
        # A reference to another setting is checked when verl's configuration is composed.
        if not _whole(value) and "${" not in str(value):
            yield f"{key}={value!r} must be a whole number, 1 or more"


def _wrong_batches(lookup: Lookup, gpus: int) -> Iterator[str]:
    roles = [ACTOR, *(["critic"] if needs_critic(lookup) else [])]
    train, n = lookup("data.train_batch_size"), lookup(N)
    if not _whole(train, n):
        return
    if not lookup(f"{ACTOR}.use_dynamic_bsz") and _is_fsdp(lookup) and train * n % gpus:
        yield (
            f"data.train_batch_size={train} x {N}={n} is {train * n} answers, which cannot be divided among {gpus} "
            "GPUs: change one of them"
        )
    actor_mini, filled = lookup(f"{ACTOR}.ppo_mini_batch_size"), 1
    for role in roles:
        key = f"{role}.ppo_mini_batch_size"
        mini = _or(lookup(key), actor_mini)
        if not _whole(mini):
            continue
        dynamic = _or(lookup(f"{role}.use_dynamic_bsz"), lookup(f"{ACTOR}.use_dynamic_bsz"))
        if train < mini and not dynamic:
            yield f"{key}={mini} is more than data.train_batch_size={train}: lower it"
        if not _is_fsdp(lookup):
            continue
        replicas = max(gpus // _sequence_parallel(lookup, role), 1)
        if mini * n % replicas:
            yield (
                f"{key}={mini} x {N}={n} is {mini * n} answers, which cannot be divided among the {replicas} replicas "
                "of the model: change one of them, or the number of nodes"
            )
            continue
        filled = math.lcm(filled, mini * n)
        micro, share = lookup(f"{role}.ppo_micro_batch_size_per_gpu"), mini * n // replicas
        if _whole(micro) and share % micro and not dynamic:
            yield (
                f"{role}.ppo_micro_batch_size_per_gpu={micro} does not divide the {share} answers of a GPU: "
                f"{key}={mini} x {N}={n}, divided among {replicas} replicas of the model. Set it to "
                f"{divisors(share)}, or set {role}.use_dynamic_bsz=true"
            )
    if _whole(actor_mini):
        yield from _wrong_forward_batches(lookup, gpus, filled)


def _wrong_forward_batches(lookup: Lookup, gpus: int, filled: int) -> Iterator[str]:
    """Yield the micro batches of log probabilities that do not divide the answers of one step on a GPU.

    Args:
        lookup: verl's settings.
        gpus: Number of GPUs of all nodes together.
        filled: Number to a multiple of which the V1 trainer fills the answers of a step.
    """
    if lookup(f"{ACTOR}.use_dynamic_bsz") or not _is_fsdp(lookup):
        return
    answers = lookup("data.train_batch_size") * lookup(N)
    if lookup("trainer.use_v1"):
        answers = math.ceil(answers / filled) * filled
    replicas = max(gpus // _sequence_parallel(lookup, ACTOR), 1)
    # With LoRA, the reference is the actor without its adapter.
    with_lora = lookup("actor_rollout_ref.model.lora_rank")
    with_reference = lookup(f"{ACTOR}.use_kl_loss") or lookup("algorithm.use_kl_in_reward")
    for section in ("rollout", "ref") if with_reference and not with_lora else ("rollout",):
        key = f"actor_rollout_ref.{section}.log_prob_micro_batch_size_per_gpu"
        if _whole(micro := lookup(key)) and answers % replicas == 0 and answers // replicas % micro:
            share = answers // replicas
            yield (
                f"{key}={micro} does not divide the {share} answers of a step on each GPU: set it to {divisors(share)}"
            )


def _whole(*values: Any) -> bool:
    return all(type(value) is int and value > 0 for value in values)


def _or(value: Any, other: Any) -> Any:
    return other if value is None else value


def _is_fsdp(lookup: Lookup) -> bool:
    """Return True for verl's default engine; the others divide the model among GPUs in ways of their own."""
    return str(lookup(f"{ACTOR}.strategy")).startswith("fsdp")


def _sequence_parallel(lookup: Lookup, role: str) -> int:
    """Return the number of GPUs that share the sequences of a role."""
    engine = "fsdp_config" if role == ACTOR else "fsdp"
    value = lookup(f"{role}.{engine}.ulysses_sequence_parallel_size")
    return value if _whole(value) else 1
