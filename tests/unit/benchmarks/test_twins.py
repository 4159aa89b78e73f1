"""Twins are valid recipes that keep what a twin is for: the data, algorithm and reward of their recipe."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.config.loader import load_recipe
from llm_bridge.pipeline.plan import make_plan
from testing.twins import TWINS, Twin


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.recipe)
def test_a_twin_is_a_valid_recipe_with_the_data_algorithm_and_reward_of_its_recipe(
    twin: Twin, include: Path
) -> None:
    site: Any = SimpleNamespace(include=include, workspace=Path("/shared"))
    twin.write_recipe(site)
    plan = make_plan({"recipe": twin.name, "cluster": "local"}, "post_training", "run")
    made, recipe = plan.recipe, load_recipe(twin.recipe)
    assert made.stages == recipe.stages and made.ppo.algorithm == recipe.ppo.algorithm
    if not twin.reward:
        assert made.ppo.reward == recipe.ppo.reward
    if "data" not in twin.changes:
        assert made.data.format == recipe.data.format and made.data.columns == recipe.data.columns
