"""The recipe's evaluate and publish: defaults, forms, and what is refused before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.config.loader import load_recipe
from llm_bridge.config.publish import Publish
from llm_bridge.config.recipe import Recipe
from llm_bridge.exceptions import ConfigError


def recipe(include: Path, **keys: Any) -> Recipe:
    file = include / "recipes" / "mine.yaml"
    file.write_text(yaml.safe_dump({"base_model": "a/b", **keys}))
    return load_recipe("mine")


def refused(include: Path, **keys: Any) -> str:
    with pytest.raises(ConfigError) as error:
        recipe(include, **keys)
    return str(error.value)


def test_a_recipe_without_the_keys_evaluates_nothing_and_publishes_always(include: Path) -> None:
    made = recipe(include)
    assert made.evaluate is None and not made.publish.has_conditions


def test_an_empty_evaluate_has_defaults(include: Path) -> None:
    made = recipe(include, evaluate={}).evaluate
    assert made is not None
    assert (made.rows, made.seed, made.samples, made.harness) == (500, 0, 1, [])
    assert (made.decoding.temperature, made.decoding.top_p, made.decoding.max_tokens) == (0.0, 1.0, None)


def test_one_task_of_the_harness_needs_no_list(include: Path) -> None:
    made = recipe(include, evaluate={"harness": "hellaswag", "rows": None, "mem": "64G"}).evaluate
    assert made is not None and made.harness == ["hellaswag"] and made.rows is None


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"rows": 0}, "evaluate.rows"),
        ({"seed": -1}, "evaluate.seed"),
        ({"decoding": {"temperature": 3}}, "evaluate.decoding.temperature"),
        ({"decoding": {"top_p": 0}}, "evaluate.decoding.top_p"),
        ({"decoding": {"top_k": 5}}, "evaluate.decoding"),
        ({"samples": 4}, "set decoding.temperature, such as 1.0, or samples to 1"),
        ({"harness": ["a,b"]}, "a task of lm-evaluation-harness, such as hellaswag"),
        ({"harness": ["x", "y", "x"]}, "evaluate.harness: names x more than once"),
        ({"harness": ["--help"]}, "a task of lm-evaluation-harness, such as hellaswag"),
        ({"harness_hours": 2}, "set harness, such as [hellaswag], or remove harness_hours"),
        (
            {"harness_chat_template": True},
            "set harness, such as [hellaswag], or remove harness_chat_template",
        ),
        ({"nodes": 2}, "remove nodes, and set gpus_per_node instead"),
        (False, "evaluate"),
        ({"row": 5}, "rows"),
    ],
)
def test_a_wrong_evaluate_is_refused_with_its_key(include: Path, evaluate: Any, said: str) -> None:
    text = refused(include, evaluate=evaluate)
    assert "include/recipes/mine.yaml" in text and said in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("always", Publish()),
        (None, Publish()),
        ("approval", Publish(approval=True)),
        ({"min_score": 0.4}, Publish(min_score=0.4)),
        ({"min_score": 1}, Publish(min_score=1.0)),
        ({"better_than": "sft", "approval": True}, Publish(better_than="sft", approval=True)),
        ("never", Publish(never=True)),
        ({"approval": True, "approval_hours": 12}, Publish(approval=True, approval_hours=12)),
    ],
)
def test_the_forms_of_publish(include: Path, given: Any, meant: Publish) -> None:
    made = recipe(include, publish=given)
    assert made.publish == meant
    assert Recipe.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sometimes", "expected always, approval, never, or conditions such as {min_score: 0.4}"),
        ({"never": True, "min_score": 0.4}, "remove the conditions beside it, or never"),
        (["always"], "expected always, approval"),
        ({"better_than": "yesterday"}, "'base', 'sft' or 'published'"),
        ({"when": "always"}, "min_score"),
        ({"min_score": float("nan")}, "publish.min_score: Input should be a finite number"),
        ({"min_score": True}, "publish.min_score: must be a number, not true or false"),
        ({"approval_hours": 2}, "set approval: true, or remove it"),
    ],
)
def test_a_wrong_publish_is_refused_with_the_valid_forms(include: Path, given: Any, said: str) -> None:
    text = refused(include, publish=given)
    assert "publish" in text and said in text


def test_a_key_with_nothing_below_it_is_no_evaluation_and_refused(include: Path) -> None:
    (include / "recipes" / "mine.yaml").write_text("base_model: a/b\nevaluate:\n")
    with pytest.raises(ConfigError, match=r"evaluate is empty: write 'evaluate: \{\}' for its defaults"):
        load_recipe("mine")
