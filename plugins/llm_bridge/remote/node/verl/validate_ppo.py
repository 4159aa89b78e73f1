"""Run verl's own checks of PPO's settings on a CPU: verl's driver runs them when the GPUs are held already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_bridge.remote.node.common.job_io import JobError, log_line


def validate(config: Any) -> None:
    """Check verl's complete configuration; importing verl and torch takes some ten seconds.

    Args:
        config: The configuration; it must not be used afterwards.

    Raises:
        JobError: verl refuses it; the message has verl's own text.
    """
    actor = config.actor_rollout_ref.actor
    _check("", lambda: _validate_config(config))
    if config.actor_rollout_ref.model.external_lib:
        return  # a module of the user's, which may register estimators and losses
    _check("algorithm.adv_estimator: ", lambda: _find_estimator(config.algorithm.adv_estimator))
    _check("actor_rollout_ref.actor.policy_loss: ", lambda: _find_loss(actor.policy_loss.loss_mode))


def _check(where: str, check: Callable[[], None]) -> None:
    try:
        check()
    except ImportError as error:
        # Such as a CUDA library that a node without GPUs lacks: the nodes with GPUs may have it.
        log_line(f"verl cannot check the settings of PPO on this node: {error}")
    except Exception as error:  # verl raises AssertionError, ValueError, hydra's and others
        text = " ".join(str(error).split()) or type(error).__name__
        raise JobError(f"{where}verl refuses the settings: {text}", kind="bad_config") from error


def _validate_config(config: Any) -> None:
    from omegaconf import open_dict
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    with open_dict(config):
        # With it, verl would load the tokenizer of the critic, whose model SFT may have yet to make.
        config.critic.model = None
        # With it, verl would import vLLM, which may need a GPU for that, and check nothing but vLLM's highest rank.
        config.actor_rollout_ref.model.lora_rank = 0
    validate_config(config, need_reference_policy(config), need_critic(config))


def _find_estimator(name: str) -> None:
    from verl.trainer.ppo import core_algos

    if name not in core_algos.ADV_ESTIMATOR_REGISTRY:
        known = ", ".join(sorted(core_algos.ADV_ESTIMATOR_REGISTRY))
        raise ValueError(f"there is no estimator {name!r}. verl has {known}")


def _find_loss(name: str) -> None:
    from verl.trainer.ppo import core_algos

    core_algos.get_policy_loss_fn(name)
