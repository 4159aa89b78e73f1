"""verl's settings in a recipe, and the names that they had in the seed's verl."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.config.loader import load_recipe
from llm_bridge.config.verl_settings import translate
from llm_bridge.exceptions import ConfigError


def write(include: Path, name: str, text: str) -> None:
    (include / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("stage", "key", "advice"),
    [
        ("sft", "model.strategy", "model.strategy was renamed in verl: use engine.strategy"),
        ("sft", "model.partial_pretrain", "the recipe's base_model"),
        ("sft", "data.prompt_key", "'messages' column"),
        (
            "ppo",
            "critic.model.fsdp_config.param_offload",
            "param_offload was renamed in verl: use critic.fsdp.param_offload",
        ),
        ("ppo", "trainer.nnodes", "is set by llm-bridge from ppo.nodes"),
        ("ppo", "data.x=1 trainer.y", "is not a verl key"),
    ],
)
def test_a_verl_key_that_cannot_be_used_is_refused_with_its_replacement(
    include: Path, stage: str, key: str, advice: str
) -> None:
    write(include, "recipes/mine.yaml", f"base_model: a/b\n{stage}:\n  verl:\n    {key}: 1\n")
    with pytest.raises(ConfigError) as error:
        load_recipe("mine")
    assert advice in str(error.value)


@pytest.mark.parametrize("option", ["tokenize", "add_generation_prompt", "max_length", "return_dict"])
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_an_argument_of_the_chat_template_that_verl_sets_itself_is_refused_with_its_key(
    include: Path, stage: str, option: str
) -> None:
    given = (
        f"base_model: a/b\n{stage}: {{verl: {{data: {{apply_chat_template_kwargs: {{{option}: false}}}}}}}}\n"
    )
    write(include, "recipes/mine.yaml", given)
    with pytest.raises(
        ConfigError, match=f"{stage}.verl: data.apply_chat_template_kwargs.{option}: verl sets"
    ):
        load_recipe("mine")


def test_arguments_of_the_chat_template_are_a_mapping_of_its_own_variables(include: Path) -> None:
    own = {"data.apply_chat_template_kwargs": {"enable_thinking": False}}
    assert translate("ppo", own) == {"data.apply_chat_template_kwargs.enable_thinking": False}
    assert translate("ppo", {"+data.apply_chat_template_kwargs": {}})
    with pytest.raises(ValueError, match=r"must be a mapping, such as \{enable_thinking: false\}, not 'x'"):
        translate("ppo", {"data.apply_chat_template_kwargs": "x"})


def test_verl_settings_may_be_nested_or_dotted(include: Path) -> None:
    write(
        include,
        "recipes/mine.yaml",
        "base_model: a/b\nsft:\n  verl:\n    data: {max_length: 9}\n    optim.lr: 0.1\n",
    )
    assert load_recipe("mine").sft.verl == {"data.max_length": 9, "optim.lr": 0.1}


def test_a_number_that_yaml_reads_as_text_is_passed_to_verl_as_a_number(include: Path) -> None:
    write(include, "recipes/mine.yaml", "base_model: a/b\nsft:\n  verl: {optim.lr: 1e-6, data.name: 1e}\n")
    assert load_recipe("mine").sft.verl == {"optim.lr": 1e-6, "data.name": "1e"}


@pytest.mark.parametrize(
    ("stage", "old", "new"),
    [
        ("sft", "model.partial_pretrain", "base_model"),
        ("sft", "model.strategy", "engine.strategy"),
        ("sft", "data.prompt_dict_keys", "messages"),
        ("sft", "+data.response_dict_keys", "messages"),
        ("ppo", "critic.model.fsdp_config.param_offload", "critic.fsdp.param_offload"),
    ],
)
def test_a_setting_of_the_seeds_verl_is_refused_with_its_replacement(stage: str, old: str, new: str) -> None:
    with pytest.raises(ValueError, match=new):
        translate(stage, {old: "x"})
