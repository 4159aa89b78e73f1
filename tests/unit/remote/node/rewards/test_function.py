"""The reward of a run as verl gets it: its settings, and the function that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.rewards import function
from llm_bridge.remote.node.stages import ppo
from llm_bridge.remote.node.verl.hydra_args import overrides
from tests.unit.remote.node.support import ppo_settings

HEAD = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0, **kwargs):\n"
OWN = (
    HEAD
    + "    return {'score': 1.0 + (sum(bonus) if isinstance(bonus, list) else bonus), 'length': len(solution_str)}\n"
)
CALL = {"data_source": "mine", "solution_str": "#### 5", "ground_truth": "5", "extra_info": {}}
NAME = "reward.custom_reward_function"


def own(text: str = OWN, **term: Any) -> dict[str, Any]:
    return {"terms": [{"name": "own", **term}], "files": {"own": text}}


def called_by_verl(reward: dict[str, Any], attempt: Path) -> Any:
    """Import and call as verl/trainer/ppo/reward.py: get_custom_reward_fn."""
    settings = function.verl_settings(reward, attempt, {})
    function.write_files(reward, attempt)
    if settings[f"{NAME}.path"].startswith("pkg://"):
        found = function.compute_score
    else:
        space: dict[str, Any] = {}
        exec(Path(settings[f"{NAME}.path"]).read_text(), space)
        found = space[settings[f"{NAME}.name"]]
    return found(**CALL, **settings.get(f"+{NAME}.reward_kwargs", {}))


def test_verl_calls_the_users_file_directly_with_its_options(tmp_path: Path) -> None:
    reward = own(options={"bonus": 0.5})
    assert function.verl_settings(reward, tmp_path, {}) == {
        f"{NAME}.path": f"{tmp_path}/reward_files/own.py",
        f"{NAME}.name": "compute_score",
        f"+{NAME}.reward_kwargs": {"bonus": 0.5},
    }
    assert called_by_verl(reward, tmp_path) == {"score": 1.5, "length": 6}


@pytest.mark.parametrize(
    ("reward", "result"),
    [
        ({"terms": [{"name": "gsm8k", "options": {"method": "strict"}}]}, 1.0),
        (own(options={"bonus": [1, 2]}), {"score": 4.0, "length": 6}),
        (own("async " + OWN, options={"bonus": [1, 2]}), {"score": 4.0, "length": 6}),
        (own(weight=2.0), {"score": 2.0, "reward_own": 1.0}),
        (
            {
                "terms": [
                    {"name": "gsm8k"},
                    {"name": "regex", "weight": -0.5, "options": {"pattern": r"\d ${x}|#"}},
                    {"name": "regex", "weight": 0.25, "options": {"pattern": "5"}},
                    {"name": "own", "weight": 0.5},
                ],
                "files": {"own": "async " + OWN},
            },
            {
                "score": 1.25,
                "reward_gsm8k": 1.0,
                "reward_regex": 1.0,
                "reward_regex_2": 1.0,
                "reward_own": 1.0,
            },
        ),
    ],
)
def test_other_rewards_are_read_from_a_file_of_the_attempt(
    reward: dict[str, Any], result: Any, tmp_path: Path
) -> None:
    settings = function.verl_settings(reward, tmp_path, {})
    assert settings[f"{NAME}.path"] == "pkg://llm_bridge.remote.node.rewards.function"
    assert called_by_verl(reward, tmp_path) == result


def test_a_reward_model_runs_in_the_engine_of_the_rollouts() -> None:
    assert function.verl_settings(
        {"model": "/rm"}, Path("/a"), {"actor_rollout_ref.rollout.name": "sglang"}
    ) == {
        "reward.reward_model.enable": True,
        "reward.reward_model.model_path": "/rm",
        "reward.reward_model.rollout.name": "sglang",
        "reward.reward_model.rollout.tensor_model_parallel_size": 1,
    }


def test_a_sandbox_has_its_limits() -> None:
    assert function.verl_settings(
        {"sandbox_url": "http://s/run_code", "sandbox_memory_mb": 512}, Path("/a"), {}
    ) == {
        "reward.sandbox_fusion.url": "http://s/run_code",
        "reward.sandbox_fusion.max_concurrent": 64,
        "reward.sandbox_fusion.memory_limit_mb": 512,
    }


def test_ppo_passes_the_reward_to_verl_with_absolute_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ppo", "settings.json"])
    wanted = overrides(function.verl_settings(own(), tmp_path, {}))
    assert set(wanted) <= set(ppo.arguments(ppo_settings(reward=own())))
