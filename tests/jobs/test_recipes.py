"""The recipes, and the seed's old names of verl's settings."""

from __future__ import annotations

import pytest
import sft
import verl_run

from llm_bridge.config.load import available, load_recipe
from llm_bridge.config.verl_keys import translate


@pytest.mark.parametrize("name", available("recipes"))
def test_every_number_of_a_recipe_is_a_number(name: str) -> None:
    # YAML takes 1e-6 for a word, and verl would get that word
    recipe = load_recipe(name)
    words = [v for v in {**recipe.sft.verl, **recipe.ppo.verl}.values() if isinstance(v, str)]
    assert not [word for word in words if word[:1].isdigit()]


@pytest.mark.parametrize(("name", "rows", "processes"), [("gsm8k_llama32_1b", 7473, 16), ("tiny_cpu", 64, 2)])
def test_sft_saves_before_its_end_and_never_at_the_end_of_an_epoch(
    name: str, rows: int, processes: int
) -> None:
    verl = load_recipe(name).sft.verl
    epoch = sft.steps_per_epoch(rows, verl["data.train_batch_size"], processes)
    last = verl_run.expected_steps(epoch, verl["trainer.total_epochs"], None)
    saved = list(range(verl["trainer.save_freq"], last, verl["trainer.save_freq"]))
    assert saved and not [step for step in saved if step % epoch == 0]


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
def test_a_setting_of_the_seeds_verl_is_refused_with_what_to_write(stage: str, old: str, new: str) -> None:
    with pytest.raises(ValueError, match=new):
        translate(stage, {old: "x"})
