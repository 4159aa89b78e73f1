"""Algorithms of reinforcement learning that a recipe names with ``ppo.algorithm``, each as settings of verl 0.9.1.

The settings lie under the recipe's own: what the recipe's ``ppo.verl`` sets, wins. docs/algorithms.md has them as a
table.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal, get_args

Algorithm = Literal["ppo", "grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "remax", "dapo", "gspo"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)

# verl's default for data.max_response_length (trainer/config/data/legacy_data.yaml).
DEFAULT_RESPONSE_LENGTH = 512

# Answers to each prompt that are compared with each other; verl's own default is 1.
_GROUP = {"actor_rollout_ref.rollout.n": 8}
_NO_KL = {"actor_rollout_ref.actor.use_kl_loss": False, "algorithm.use_kl_in_reward": False}
# The coefficient of verl's examples is its default of algorithm.kl_ctrl.kl_coef.
_KL_IN_REWARD = {"actor_rollout_ref.actor.use_kl_loss": False, "algorithm.use_kl_in_reward": True}

PRESETS: dict[Algorithm, dict[str, Any]] = {
    # Nothing: verl's defaults are PPO with GAE and a critic (arXiv 1707.06347).
    "ppo": {},
    # arXiv 2402.03300: advantages from the other answers to the prompt, KL as part of the loss. The coefficient is the
    # one of verl's examples (the paper has 0.04).
    "grpo": {
        "algorithm.adv_estimator": "grpo",
        "algorithm.use_kl_in_reward": False,
        "actor_rollout_ref.actor.use_kl_loss": True,
        "actor_rollout_ref.actor.kl_loss_coef": 0.001,
        "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
        **_GROUP,
    },
    # arXiv 2503.20783: GRPO without both divisions that favour long wrong answers (by the standard deviation, and by
    # the answer's own length), and without KL. with_preset adds loss_scale_factor.
    "dr_grpo": {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": False,
        "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm",
        **_NO_KL,
        **_GROUP,
    },
    # arXiv 2402.14740: the baseline of an answer is the mean of the others, KL is part of the reward.
    "rloo": {"algorithm.adv_estimator": "rloo", **_KL_IN_REWARD, **_GROUP},
    # arXiv 2501.03262: advantages normalized over the batch, so one answer to a prompt is enough; KL in the reward.
    "reinforce_plus_plus": {"algorithm.adv_estimator": "reinforce_plus_plus", **_KL_IN_REWARD},
    # arXiv 2310.10505: the baseline is the greedy answer, which only verl's older trainer generates (ray_trainer.py).
    "remax": {"algorithm.adv_estimator": "remax", "trainer.use_v1": False, **_KL_IN_REWARD},
    # arXiv 2503.14476: GRPO with a higher upper clip range, without KL, and with prompts replaced whose answers all
    # have the same reward. Its penalty for overlong answers depends on the data: docs/algorithms.md.
    "dapo": {
        "algorithm.adv_estimator": "grpo",
        "algorithm.filter_groups.enable": True,
        "algorithm.filter_groups.metric": "reward",
        "actor_rollout_ref.actor.clip_ratio_low": 0.2,
        "actor_rollout_ref.actor.clip_ratio_high": 0.28,
        "actor_rollout_ref.actor.clip_ratio_c": 10.0,
        "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
        **_NO_KL,
        **_GROUP,
    },
    # arXiv 2507.18071: GRPO with one importance ratio for the whole answer, and the paper's clip range for it.
    "gspo": {
        "algorithm.adv_estimator": "grpo",
        "actor_rollout_ref.actor.policy_loss.loss_mode": "gspo",
        "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
        "actor_rollout_ref.actor.clip_ratio_low": 3.0e-4,
        "actor_rollout_ref.actor.clip_ratio_high": 4.0e-4,
        **_NO_KL,
        **_GROUP,
    },
}


def check_name(value: Any) -> Any:
    """Return ``value`` if it names an algorithm.

    Raises:
        ValueError: It does not; the message has the valid names, and the most similar ones.
    """
    if value in ALGORITHMS:
        return value
    plain = str(value).strip().lower().replace("-", "_").replace("++", "_plus_plus")
    similar = [plain] if plain in ALGORITHMS else difflib.get_close_matches(plain, ALGORITHMS, n=2)
    hint = f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""
    raise ValueError(f"no such algorithm: {hint}Choose from {', '.join(ALGORITHMS)}")


def with_preset(algorithm: Algorithm, verl: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings with those of its algorithm under them.

    Args:
        algorithm: The recipe's ``ppo.algorithm``.
        verl: The recipe's ``ppo.verl``, under dotted keys.
    """
    own = {key.lstrip("+"): value for key, value in verl.items()}
    preset = dict(PRESETS[algorithm])
    if algorithm == "dr_grpo":
        # A constant, as in the paper: without it verl divides by the length of the longest answer of each batch.
        length = own.get("data.max_response_length", DEFAULT_RESPONSE_LENGTH)
        preset["actor_rollout_ref.actor.loss_scale_factor"] = length
    return {key: value for key, value in preset.items() if key not in own} | verl
