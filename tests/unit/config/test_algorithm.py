"""Algorithms that a recipe names."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.config.algorithm import ALGORITHMS, PRESETS
from llm_bridge.config.loader import load_recipe
from llm_bridge.config.recipe import Ppo, Recipe
from llm_bridge.config.verl_settings import translate
from llm_bridge.exceptions import ConfigError
from testing.paths import ROOT


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpro", "did you mean 'gspo' or 'grpo'? "),
        ("GRPO", "did you mean 'grpo'? "),
        ("dr-grpo", "did you mean 'dr_grpo'? "),
        ("reinforce++", "did you mean 'reinforce_plus_plus'? "),
        ("xyz", ""),
        ("[xyz]", ""),
    ],
)
def test_a_mistyped_algorithm_is_one_error_with_the_valid_names(include: Path, name: str, hint: str) -> None:
    (include / "recipes" / "mine.yaml").write_text(f"base_model: a/b\nppo:\n  algorithm: {name}\n")
    with pytest.raises(ConfigError) as error:
        load_recipe("mine")
    assert f"ppo.algorithm: no such algorithm: {hint}Choose from ppo, grpo, dr_grpo, rloo" in str(error.value)
    assert "1 error(s)" in str(error.value)


def test_the_default_algorithm_adds_nothing_to_the_recipes_settings() -> None:
    own = {"data.train_batch_size": 8}
    assert Ppo.model_validate({"verl": own}).verl == own
    assert Ppo.model_validate({"algorithm": "ppo"}).verl == {}


def test_what_the_recipe_sets_wins_over_its_algorithm() -> None:
    verl = {"actor_rollout_ref": {"rollout": {"n": 16}}, "+algorithm.adv_estimator": "mine"}
    made = Ppo.model_validate({"algorithm": "grpo", "verl": verl}).verl
    assert made["actor_rollout_ref.rollout.n"] == 16
    assert made["+algorithm.adv_estimator"] == "mine" and "algorithm.adv_estimator" not in made
    assert made["actor_rollout_ref.actor.use_kl_loss"] is True


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_recipe_with_an_algorithm_survives_its_transfer_between_tasks(name: str) -> None:
    recipe = Recipe.model_validate({"name": "x", "base_model": "a/b", "ppo": {"algorithm": name}})
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_algorithm_sets_a_key_that_a_recipe_could_not_set(name: str) -> None:
    assert translate("ppo", PRESETS[name]) == PRESETS[name]  # type: ignore[index]


def test_dr_grpo_divides_the_loss_by_the_longest_answer_that_the_recipe_allows() -> None:
    key = "actor_rollout_ref.actor.loss_scale_factor"
    verl = {"data.max_response_length": 300}
    assert Ppo.model_validate({"algorithm": "dr_grpo", "verl": verl}).verl[key] == 300
    assert Ppo.model_validate({"algorithm": "dr_grpo"}).verl[key] == 512


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_documentation_has_every_setting_of_an_algorithm(name: str) -> None:
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, settings, critic, n, _, _ = (cell.strip() for cell in row.split("|"))
    preset = dict(PRESETS[name])  # type: ignore[index]
    assert n == str(preset.pop("actor_rollout_ref.rollout.n", 1))
    assert critic == ("yes" if name == "ppo" else "no")
    for key, value in preset.items():
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        named = f"`{key.removeprefix('actor_rollout_ref.actor.')}: {shown}`"
        is_default = value is False and key.endswith(("use_kl_loss", "use_kl_in_reward"))
        assert named in settings or is_default
