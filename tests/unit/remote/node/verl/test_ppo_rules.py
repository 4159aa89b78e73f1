"""Settings that verl would ignore, get wrong, or refuse on the GPUs only."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.algorithm import ALGORITHMS, PRESETS
from llm_bridge.remote.node.verl.ppo_rules import in_recipe, needs_critic, problems, unused_critic_keys

ACTOR = "actor_rollout_ref.actor"
N = "actor_rollout_ref.rollout.n"
MICRO = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
FILTER = "algorithm.filter_groups"
LOG_PROB = "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"
REF_LOG_PROB = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"


def found(verl: dict[str, Any], gpus: int = 8) -> list[str]:
    return list(problems(in_recipe(verl), gpus))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_passes_as_it_is(name: str) -> None:
    assert found(PRESETS[name]) == []  # type: ignore[index]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_only_ppo_has_a_critic(name: str) -> None:
    assert needs_critic(in_recipe(PRESETS[name])) is (name == "ppo")  # type: ignore[index]


def test_verls_own_switch_of_the_critic_counts() -> None:
    grpo = PRESETS["grpo"]
    assert needs_critic(in_recipe({**grpo, "critic.enable": True}))
    assert not needs_critic(in_recipe({"critic.enable": False}))
    assert needs_critic(in_recipe({"critic.enable": None}))


def test_settings_of_a_critic_that_is_not_there_are_known() -> None:
    critic = {"critic.optim.lr": 1, "+critic.x": 1}
    assert unused_critic_keys(critic) == []
    assert unused_critic_keys({**PRESETS["rloo"], **critic}) == ["critic.optim.lr", "+critic.x"]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "dapo", "gspo"])
def test_one_answer_to_a_prompt_is_refused_where_answers_are_compared(name: str) -> None:
    (problem,) = found({**PRESETS[name], N: 1})  # type: ignore[index]
    assert problem.startswith(f"{N}=1: ") and "Set it to 2 or more" in problem


@pytest.mark.parametrize(
    ("verl", "message"),
    [
        ({"algorithm.adv_estimator": "remax"}, "remax needs trainer.use_v1=false"),
        (
            {**PRESETS["dapo"], "trainer.use_v1": False},
            f"{FILTER}.enable has no effect with trainer.use_v1=false",
        ),
        ({**PRESETS["dapo"], f"{FILTER}.max_num_gen_batches": 10}, f"use {FILTER}.max_inflight_gen_batches"),
        ({**PRESETS["dapo"], f"{FILTER}.metric": None}, f"{FILTER}.metric is empty"),
        ({**PRESETS["dapo"], "reward.reward_model.enable": True}, "enable_resource_pool=true"),
        ({**PRESETS["grpo"], "trainer.critic_warmup": 5}, "trainer.critic_warmup=5: there is no critic"),
        ({f"{ACTOR}.clip_ratio": 0.3}, f"{ACTOR}.clip_ratio=0.3 has no effect"),
    ],
)
def test_what_verl_would_ignore_is_refused(verl: dict[str, Any], message: str) -> None:
    (problem,) = found(verl)
    assert message in problem


@pytest.mark.parametrize(
    ("verl", "gpus", "message"),
    [
        ({"data.train_batch_size": 1000, N: 1}, 16, "is 1000 answers, which cannot be divided among 16 GPUs"),
        (
            {"data.train_batch_size": 64},
            8,
            f"{ACTOR}.ppo_mini_batch_size=256 is more than data.train_batch_size=64",
        ),
        ({LOG_PROB: 24}, 8, f"{LOG_PROB}=24 does not divide the 128 answers of a step on each GPU"),
        ({**PRESETS["grpo"], REF_LOG_PROB: 24}, 8, f"{REF_LOG_PROB}=24 does not divide the 1024 answers"),
        ({MICRO: 24}, 8, f"{MICRO}=24 does not divide the 32 answers of a GPU"),
        ({MICRO: 24}, 8, "Set it to 1, 2, 4, 8, 16 or 32, or set"),
        ({LOG_PROB: 24}, 8, "set it to 1, 2, 4, 8, 16, 32, 64 or 128"),
        (
            {"critic.ppo_micro_batch_size_per_gpu": 24},
            8,
            "critic.ppo_micro_batch_size_per_gpu=24 does not divide",
        ),
        (
            {f"{ACTOR}.ppo_mini_batch_size": 60},
            8,
            "is 60 answers, which cannot be divided among the 8 replicas",
        ),
    ],
)
def test_batches_that_cannot_be_divided_are_refused(verl: dict[str, Any], gpus: int, message: str) -> None:
    assert message in found(verl, gpus)[0]


@pytest.mark.parametrize("key", ["data.train_batch_size", N, f"{ACTOR}.ppo_mini_batch_size"])
@pytest.mark.parametrize("value", [0, -8, 8.5, True, "4", None])
def test_a_batch_size_that_is_no_positive_whole_number_is_refused(key: str, value: Any) -> None:
    assert f"{key}={value!r} must be a whole number, 1 or more" in found({key: value})


@pytest.mark.parametrize(
    "verl",
    [
        # Only a multiple with all answers to the prompts.
        {**PRESETS["grpo"], "data.train_batch_size": 12, f"{ACTOR}.ppo_mini_batch_size": 3, MICRO: 1},
        # verl fills the last mini batch of a step.
        {"data.train_batch_size": 256, f"{ACTOR}.ppo_mini_batch_size": 96, LOG_PROB: 36},
        # Without KL there is no reference model.
        {REF_LOG_PROB: 24},
        # Packed by tokens.
        {f"{ACTOR}.use_dynamic_bsz": True, "data.train_batch_size": 1001, MICRO: 24},
        # Two GPUs share a sequence: four replicas with 64 answers each.
        {f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": 2, MICRO: 64},
        {f"{ACTOR}.strategy": "megatron", "critic.strategy": "megatron", f"{ACTOR}.ppo_mini_batch_size": 60},
        {N: "${data.n}"},
    ],
)
def test_batches_that_verl_can_divide_or_that_cannot_be_known_pass(verl: dict[str, Any]) -> None:
    assert found(verl) == []
