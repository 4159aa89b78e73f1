"""The recipe's loggers."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.loader import check_model
from llm_bridge.config.loggers import LOGGERS
from llm_bridge.config.recipe import Recipe
from llm_bridge.exceptions import ConfigError


def recipe(logger: Any) -> Recipe:
    return check_model(Recipe, {"name": "r", "base_model": "a/b", "logger": logger}, "include/recipes/r.yaml")


def test_a_recipe_may_name_each_logger_of_verl() -> None:
    assert recipe(list(LOGGERS)).logger == list(LOGGERS)
    assert recipe([]).logger == []


@pytest.mark.parametrize(
    ("logger", "text"),
    [
        (["console", "wanbd"], "logger.1: no such logger: did you mean 'wandb'? Choose from console,"),
        (["W&B"], "did you mean 'wandb'?"),
        (["weights_and_biases"], "did you mean 'wandb'?"),
        (["Weights & Biases"], "did you mean 'wandb'?"),
        (["tracking"], "did you mean 'wandb'?"),
        (["TensorBoard"], "did you mean 'tensorboard'?"),
        (["trackIO"], "did you mean 'trackio'?"),
        (["jsonl"], "did you mean 'file'?"),
        (["stdout"], "did you mean 'console'?"),
        (["neptune"], "no such logger: Choose from console, wandb, trackio, tensorboard, mlflow"),
        ([None], "no such logger: Choose from"),
        (["wandb", "wandb"], "logger: each logger may stand once: wandb stands twice"),
        ("wandb", "logger: must be a list, such as [console, wandb] (got 'wandb')"),
        ("console, wandb", "logger: must be a list, such as [console, wandb] (got"),
    ],
)  # fmt: skip
def test_a_logger_that_verl_does_not_have_is_refused_with_the_similar_ones(logger: Any, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe(logger)
    assert text in str(error.value)
