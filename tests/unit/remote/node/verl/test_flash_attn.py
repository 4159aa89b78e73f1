"""Trainings in an environment without flash-attn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.verl import flash_attn
from llm_bridge.remote.node.verl.flash_attn import PPO, SFT, Keys

ACTOR_ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
DEFAULTS = {
    "trainer.device": "cuda",
    "engine.strategy": "fsdp2",
    "model.use_remove_padding": True,
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.model.use_remove_padding": True,
    "critic.strategy": "fsdp2",
    "algorithm.adv_estimator": "gae",
}
SDPA = {"model.override_config.attn_implementation": "sdpa", ACTOR_ATTENTION: "sdpa"}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The distributions that are installed."""
    found: set[str] = set()
    monkeypatch.setattr(flash_attn, "installed", lambda name: name in found)
    return found


def settings(**changes: Any) -> Callable[[str], Any]:
    return {**DEFAULTS, **changes}.get


def refusal(keys: Keys, critic: bool = False, **changes: Any) -> str:
    with pytest.raises(JobError) as caught:
        flash_attn.check(settings(**changes), keys, critic)
    assert caught.value.kind == "bad_config"
    return str(caught.value)


@pytest.mark.parametrize("keys", [SFT, PPO])
@pytest.mark.parametrize("value", [None, "flash_attention_2"])
def test_verls_default_attention_is_refused_with_key_values_and_next_action(
    packages: set[str], keys: Keys, value: str | None
) -> None:
    key = f"{keys.model}.override_config.attn_implementation"
    text = refusal(keys, **{key: value})
    assert text.startswith("flash-attn is not installed in this environment. ")
    assert f"set +{key} to sdpa (or eager), or install flash-attn" in text


def test_a_critic_is_refused_whatever_its_attention_is(packages: set[str]) -> None:
    text = refusal(PPO, True, **SDPA, **{"critic.model.override_config.attn_implementation": "sdpa"})
    assert "algorithm.adv_estimator=gae trains a critic" in text
    assert (
        "install flash-attn (requirements-cluster-vllm.txt), or choose an algorithm without a critic" in text
    )
    assert ACTOR_ATTENTION not in text


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(("keys", "engine"), [(SFT, "engine"), (PPO, "actor_rollout_ref.actor.fsdp_config")])
def test_sequences_shared_by_gpus_are_refused_with_another_attention_than_flash_attention(
    packages: set[str], keys: Keys, engine: str, installed: bool
) -> None:
    packages |= {"flash-attn"} if installed else set()
    text = refusal(keys, **SDPA, **{f"{engine}.ulysses_sequence_parallel_size": 2})
    assert f"{engine}.ulysses_sequence_parallel_size=2 exchanges sequences" in text
    assert "attn_implementation is sdpa" in text and "to flash_attention_2" in text


def test_sequences_shared_by_gpus_need_flash_attn(packages: set[str]) -> None:
    text = refusal(SFT, **{"engine.ulysses_sequence_parallel_size": 2})
    assert "engine.ulysses_sequence_parallel_size=2 works with flash-attn only: set it to 1" in text
    packages.add("flash-attn")
    flash_attn.check(settings(**{"engine.ulysses_sequence_parallel_size": 2}), SFT)


def test_what_works_without_it_gets_one_warning_with_its_cost(
    packages: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flash_attn.check(settings(**SDPA, **{"model.use_remove_padding": False}), SFT)
    (line,) = capsys.readouterr().out.splitlines()
    assert "WARNING: flash-attn is not installed" in line and "rows are padded to the longest" in line
    flash_attn.check(settings(**SDPA), PPO)
    (line,) = capsys.readouterr().out.splitlines()
    assert "actor_rollout_ref.model.use_remove_padding=true" in line and "Set it to false" in line


def test_nothing_is_said_on_cpus_or_where_it_is_installed(
    packages: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flash_attn.check(settings(**{"trainer.device": "cpu"}), PPO, critic=True)
    packages.add("flash-attn")
    flash_attn.check(settings(), PPO, critic=True)
    assert capsys.readouterr().out == ""


def test_what_may_work_by_other_packages_or_the_users_own_code_is_not_refused(
    packages: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flash_attn.check(settings(**SDPA, **{"critic.model.external_lib": "mine"}), PPO, critic=True)
    assert "trains a critic" in capsys.readouterr().out
    packages.add("kernels")
    flash_attn.check(settings(), SFT)
    assert "WARNING: flash-attn is not installed" in capsys.readouterr().out


def test_other_engines_are_not_refused(packages: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    flash_attn.check(settings(**{"engine.strategy": "megatron"}), SFT)
    assert "engines other than FSDP may need it" in capsys.readouterr().out


def test_another_distribution_with_a_module_of_that_name_does_not_count() -> None:
    assert flash_attn.installed("pytest")
    assert not flash_attn.installed("flash-attn")
