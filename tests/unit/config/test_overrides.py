"""Lines of the form's field Overrides."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.overrides import Override, apply, parse
from llm_bridge.config.recipe import Recipe
from llm_bridge.exceptions import ConfigError

RECIPE = Recipe.model_validate(
    {
        "name": "x",
        "base_model": "a/b",
        "sft": {"verl": {"+model.x": 1, "optim.lr": 0.1}},
        "ppo": {"algorithm": "grpo", "verl": {"data.train_batch_size": 8}},
    }
)


@pytest.mark.parametrize(
    ("text", "stage", "key", "value"),
    [
        ("ppo.actor_rollout_ref.rollout.n=4", "ppo", "actor_rollout_ref.rollout.n", 4),
        ("  sft.optim.lr = 1e-6  ", "sft", "optim.lr", 1e-6),
        ("sft.optim.lr=1.0e-6  # smaller", "sft", "optim.lr", 1e-6),
        ("sft.data.name='a # b'", "sft", "data.name", "a # b"),
        ("ppo.trainer.total_training_steps=null", "ppo", "trainer.total_training_steps", None),
        ("sft.data.name=", "sft", "data.name", ""),
        ("sft.data.name='*.jsonl'", "sft", "data.name", "*.jsonl"),
        ("sft.data.name='sft.x=1 ppo.y=2'", "sft", "data.name", "sft.x=1 ppo.y=2"),
        ("sft.data.name=a=b", "sft", "data.name", "a=b"),
        ("sft.model.target_modules=[q_proj, v_proj]", "sft", "model.target_modules", ["q_proj", "v_proj"]),
        ("+ppo.reward.x=true", "ppo", "+reward.x", True),
        ("ppo.+reward.x=true", "ppo", "+reward.x", True),
        ("++ppo.reward.x=true", "ppo", "++reward.x", True),
        ("ppo.actor_rollout_ref.rollout={n: 4}", "ppo", "actor_rollout_ref.rollout.n", 4),
    ],
)
def test_a_line_is_one_setting(text: str, stage: Any, key: str, value: Any) -> None:
    assert parse(text) == [Override(1, stage, key, value)]


def test_comments_and_empty_lines_are_allowed() -> None:
    assert parse("") == parse("\n# sft.x=1\n  \n") == []
    assert [override.line for override in parse("# a\n\nsft.x=1\r\nppo.y=2\n")] == [3, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trainer.total_epochs=1", "starts with 'trainer' instead of sft or ppo, such as ppo."),
        ("rl.data.x=1", "starts with 'rl' instead of sft or ppo"),
        ("~ppo.data.x", "starts with '~ppo' instead of sft or ppo"),
        ("ppo.data.x", "is not STAGE.KEY=VALUE"),
        ("ppo=1", "is not STAGE.KEY=VALUE"),
        ("ppo.=1", "is not a verl key"),
        ("ppo.data x=1", "is not a verl key"),
        ("ppo.data.x=[1", "the value is not YAML"),
        ("ppo.trainer.nnodes=3", "trainer.nnodes is set by llm-bridge from ppo.nodes"),
        ("ppo.trainer={nnodes: 3}", "trainer.nnodes is set by llm-bridge from ppo.nodes"),
        ("sft.model.strategy=fsdp", "model.strategy was renamed in verl: use engine.strategy"),
        ("ppo.algorithm=grpo", "ppo.algorithm is a key of recipes and not of verl"),
        ("sft.nodes=3", "sft.nodes is a key of recipes and not of verl"),
        ("ppo.data.x=1 ppo.data.y=2", "has several settings: write each in a line of its own"),
        ("ppo.data.x=1,+sft.data.y = 2", "has several settings: write each in a line of its own"),
        ("ppo.data.x=*.jsonl", "is an alias of YAML"),
        ("ppo.data.x=&name 1", "is an alias of YAML: put it in quotes to mean the text"),
        ("ppo.reward.name=gsm8k", "ppo.reward.name is a key of recipes and not of verl"),
        ("sft.data.source=a/b", "sft.data.source is a key of recipes and not of verl"),
        ("ppo.data.columns.truth=a", "ppo.data.columns.truth is a key of recipes and not of verl"),
        ("ppo.verl.data.x=1", "verl's keys follow the stage directly: ppo.data.x=1"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_its_number(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(f"# first\n{line}\nsft.data.y=1")
    assert f"the trigger form, overrides:\n  - line 2 ({line}): " in str(error.value)
    assert message in str(error.value)


def test_all_wrong_lines_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse("a\nsft.x=1\nb\n+sft.x=2")
    assert "line 1 (a)" in str(error.value) and "line 3 (b)" in str(error.value)
    assert "line 4: sft.x is set in line 2 already" in str(error.value)


def test_overrides_change_the_recipes_settings_and_what_changed_is_known() -> None:
    text = "ppo.data.train_batch_size=16\n+sft.model.x=2\nsft.data.max_length=9\nppo.actor_rollout_ref.rollout.n=4"
    recipe, changes = apply(RECIPE, parse(text))
    assert recipe.sft.verl == {"+model.x": 2, "optim.lr": 0.1, "data.max_length": 9}
    assert recipe.ppo.verl == {
        **RECIPE.ppo.verl,
        "data.train_batch_size": 16,
        "actor_rollout_ref.rollout.n": 4,
    }
    assert changes == [
        "sft.model.x: 1 -> 2",
        "sft.data.max_length: not in the recipe -> 9",
        "ppo.data.train_batch_size: 8 -> 16",
        "ppo.actor_rollout_ref.rollout.n: 8 -> 4",
    ]


def test_a_key_that_the_recipe_adds_to_verls_keeps_its_plus() -> None:
    recipe, _ = apply(RECIPE, parse("sft.model.x=2"))
    assert recipe.sft.verl["+model.x"] == 2 and "model.x" not in recipe.sft.verl


def test_a_line_that_sets_the_value_of_the_recipe_is_no_change() -> None:
    assert apply(RECIPE, parse("ppo.data.train_batch_size=8")) == (RECIPE, [])
    assert apply(RECIPE, parse("ppo.data.train_batch_size=8.0"))[1] == ["ppo.data.train_batch_size: 8 -> 8.0"]


def test_without_overrides_the_recipe_stays_as_it_is() -> None:
    assert apply(RECIPE, []) == (RECIPE, [])


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"overrides of sft: model\.lora_alpha=0 must be a whole number"):
        apply(RECIPE, parse("sft.model.lora_rank=8\nsft.model.lora_alpha=0"))
