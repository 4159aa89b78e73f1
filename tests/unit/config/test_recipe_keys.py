"""Keys of a recipe that have a field in the trigger form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.config.recipe import Recipe
from llm_bridge.config.recipe_keys import KEYS, given_in, load_with
from llm_bridge.exceptions import ConfigError


def load(recipe: str = "tiny_cpu", **fields: Any) -> tuple[Recipe, list[str]]:
    """Load a recipe with fields, whose names have __ for a dot."""
    return load_with(recipe, given_in({name.replace("__", "."): value for name, value in fields.items()}))


def write(include: Path, **keys: Any) -> None:
    (include / "recipes" / "mine.yaml").write_text(yaml.safe_dump({"base_model": "a/b", **keys}))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if not key.verl])
def test_each_field_is_a_key_of_the_recipe_with_a_description(name: str) -> None:
    model: Any = Recipe
    *above, last = name.split(".")
    for part in above:
        annotation = model.model_fields[part].annotation
        candidates = (annotation, *getattr(annotation, "__args__", ()))
        model = next(each for each in candidates if hasattr(each, "model_fields"))
    assert last in model.model_fields
    key = KEYS[name]
    assert len(key.description) > 10 and "when empty" not in key.description
    assert key.schema()["type"] in ("string", "integer", "number", "boolean", "array")


def test_a_number_with_a_fraction_has_examples_because_its_widget_needs_them() -> None:
    without = [name for name, key in KEYS.items() if key.schema()["type"] == "number" and not key.examples]
    assert without == []


def test_empty_fields_change_nothing() -> None:
    empty: dict[str, Any] = dict.fromkeys(KEYS, None) | {"evaluate.harness": [""], "data.source": "  "}
    assert given_in(empty) == {}
    assert load_with("tiny_cpu", {}) == (load()[0], [])


def test_fields_count_as_if_they_stood_in_the_recipe_and_what_changed_is_known() -> None:
    recipe, changes = load(
        data__max_rows=10,
        sft__optim__lr=" 1e-4 ",
        sft__trainer__seed=2,
        evaluate__decoding__max_tokens=5,
        hub__private="true",
    )
    assert (recipe.data.max_rows, recipe.data.source) == (10, "demo/gsm8k-tiny")
    assert (recipe.sft.verl["optim.lr"], recipe.sft.verl["trainer.seed"]) == (1e-4, 2)
    assert recipe.evaluate is not None
    assert (recipe.evaluate.rows, recipe.evaluate.decoding.max_tokens) == (16, 5)
    assert recipe.hub.private
    assert changes == [
        "data.max_rows: not in the recipe -> 10",
        "sft.optim.lr: 0.005 -> 0.0001",
        "sft.trainer.seed: not in the recipe -> 2",
        "evaluate.decoding.max_tokens: not in the recipe -> 5",
        "hub.private: False -> True",
    ]


def test_a_value_that_the_recipe_has_already_is_no_change() -> None:
    assert load(evaluate__rows=16, sft__optim__lr="5e-3") == load()


def test_a_setting_that_the_recipe_adds_to_verls_keeps_its_plus(include: Path) -> None:
    write(include, ppo={"verl": {"+data.seed": 1}})
    assert load("mine", ppo__data__seed=2)[0].ppo.verl == {"+data.seed": 2}


def test_another_data_set_comes_without_configuration_and_splits_of_the_recipes(include: Path) -> None:
    write(include, data={"source": "a/b", "config": "c", "test_split": "t", "max_rows": 5, "format": "chat"})
    data = load("mine", data__source="/data/x.jsonl")[0].data
    assert (data.source, data.config, data.test_split, data.max_rows) == ("/data/x.jsonl", None, None, 5)
    write(include, data={"sources": [{"source": "a/b"}, {"source": "a/c"}], "format": "chat"})
    assert load("mine", data__source="a/d")[0].data.sources is None
    with pytest.raises(ConfigError, match="move max_rows into sources"):
        load("mine", data__max_rows=4)


def test_data_that_no_training_uses_are_refused(include: Path) -> None:
    own = {"data": {"source": "a/b", "format": "chat"}}
    write(include, sft=own, ppo=own)
    with pytest.raises(
        ConfigError, match=r"data\.max_rows would change nothing, because sft and ppo have data"
    ):
        load("mine", data__max_rows=4)


def test_an_algorithm_without_a_critic_comes_without_the_recipes_settings_for_one() -> None:
    recipe, changes = load(ppo__algorithm="grpo")
    assert recipe.ppo.algorithm == "grpo" and recipe.ppo.verl["algorithm.adv_estimator"] == "grpo"
    assert not [key for key in recipe.ppo.verl if "critic." in key]
    assert "ppo.critic.optim.lr: 0.0001 -> not set, because of algorithm grpo" in changes
    assert "ppo.algorithm: not in the recipe -> 'grpo'" in changes
    assert load("tiny_grpo_cpu", ppo__algorithm="grpo") == load("tiny_grpo_cpu")


def test_the_algorithm_sees_the_length_of_the_form() -> None:
    recipe, _ = load(ppo__algorithm="dr_grpo", ppo__data__max_response_length=99)
    assert recipe.ppo.verl["actor_rollout_ref.actor.loss_scale_factor"] == 99


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"publish": "always"}, {}),
        ({"publish": "never"}, {"never": True}),
        ({"publish.better_than": "base"}, {"min_score": 0, "better_than": "base"}),
        ({"publish": "approval", "publish.min_score": "-1.5"}, {"approval": True, "min_score": -1.5}),
    ],
)
def test_conditions_of_the_form_are_added_to_the_recipes_or_replace_them(
    fields: dict[str, Any], meant: dict[str, Any]
) -> None:
    assert load(**fields)[0].publish.model_dump(exclude_defaults=True) == meant


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sft.optim.lr": "-1"}, r"sft\.optim\.lr \(SFT, Learning rate\): .*greater than 0 \(got '-1'\)"),
        ({"sft.optim.lr": "fast"}, "valid number"),
        ({"ppo.algorithm": "grop"}, r"ppo\.algorithm \(RL, Algorithm\): .*'ppo', 'grpo', 'dr_grpo'"),
        ({"data.source": "x"}, r"data\.source \(Data, Data set\): must be OWNER/NAME on the Hub"),
        ({"ppo.reward": "blub"}, r"ppo\.reward: name: there is no reward 'blub'\. Built-in: gsm8k"),
        ({"evaluate.samples": 2}, "all the same at temperature 0"),
        ({"publish": "never", "publish.min_score": 1}, "remove the conditions beside it, or never"),
        ({"sft.time_limit": "x"}, r"sft\.time_limit .*must be minutes, h:m:s"),
    ],
)
def test_a_wrong_value_is_refused_with_the_field_and_what_is_allowed(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**fields)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load(sft__optim__lr="0", ppo__init_from="rl")
    assert len(error.value.lines) == 2
