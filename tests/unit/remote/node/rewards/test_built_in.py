"""Built-in rewards."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.reward import BUILT_IN
from llm_bridge.remote.node.rewards.built_in import REWARDS


@pytest.mark.parametrize(
    ("name", "response", "truth", "options", "score"),
    [
        ("gsm8k", "so #### 1,234", "1234", {}, 1.0),
        ("gsm8k", "#### 5\n#### 1", "5", {}, 0.0),
        ("gsm8k", "#### 7", "5", {"format_score": 0.1}, 0.1),
        ("gsm8k", "it is 5", "5", {}, 0.0),
        ("gsm8k", "it is 5.", "5", {"method": "flexible"}, 0.0),
        ("gsm8k", "it is 5 .", "5", {"method": "flexible"}, 1.0),
        ("gsm8k", "#### 5" + " " * 301, "5", {}, 0.0),
        ("exact_match", " a  b\n", "a b", {}, 1.0),
        ("exact_match", "A", "a", {}, 0.0),
        ("exact_match", "A", "a", {"ignore_case": True}, 1.0),
        ("exact_match", "x: 1\nx: 2", "2", {"answer": r"x: (\d)"}, 1.0),
        ("exact_match", "none", "2", {"answer": r"x: (\d)"}, 0.0),
        ("regex", "a\nb", "", {"pattern": "^b"}, 0.0),
        ("regex", "a b", "", {"pattern": " b"}, 1.0),
        ("format", "<think>\n</think> <answer>\n</answer>", "", BUILT_IN["format"]().model_dump(), 1.0),
        ("format", "<think></think>", "", BUILT_IN["format"]().model_dump(), 0.0),
        ("length_penalty", "x" * 10, "", {"free": 10, "full": 20}, 0.0),
        ("length_penalty", "x" * 15, "", {"free": 10, "full": 20}, -0.5),
        ("length_penalty", "x" * 99, "", {"free": 10, "full": 20}, -1.0),
    ],
)
def test_a_built_in_reward_scores_a_response(
    name: str, response: str, truth: str, options: dict[str, Any], score: float
) -> None:
    arguments = {"data_source": "mine", "solution_str": response, "ground_truth": truth, "extra_info": {}}
    assert REWARDS[name](**arguments, **options) == score


def test_every_built_in_reward_of_the_recipe_exists_on_the_node() -> None:
    assert set(REWARDS) == set(BUILT_IN)


def test_math_without_math_verify_names_the_module() -> None:
    with pytest.raises(ModuleNotFoundError, match="math-verify"):
        REWARDS["math"](solution_str="1", ground_truth="1")
