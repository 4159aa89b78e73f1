"""The recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.config.loader import available, load_recipe
from llm_bridge.remote.node.stages import sft
from llm_bridge.remote.node.verl import trainer_config


@pytest.mark.parametrize("name", available("recipes"))
def test_every_number_of_a_recipe_is_a_number(name: str) -> None:
    # YAML reads 1e-6 as text, and verl would get that text
    recipe = load_recipe(name)
    texts = [v for v in {**recipe.sft.verl, **recipe.ppo.verl}.values() if isinstance(v, str)]
    assert not [text for text in texts if text[:1].isdigit()]


@pytest.mark.parametrize(("name", "rows", "processes"), [("gsm8k_llama32_1b", 7473, 16), ("tiny_cpu", 64, 2)])
def test_sft_saves_before_its_end_and_never_at_the_end_of_an_epoch(
    name: str, rows: int, processes: int
) -> None:
    verl = load_recipe(name).sft.verl
    epoch = sft.steps_per_epoch(rows, verl["data.train_batch_size"], processes)
    last = trainer_config.expected_steps(epoch, verl["trainer.total_epochs"], None)
    saved = list(range(verl["trainer.save_freq"], last, verl["trainer.save_freq"]))
    assert saved and not [step for step in saved if step % epoch == 0]


@pytest.mark.parametrize(
    ("line", "mode"),
    [("", "off"), ("tune: off", "off"), ("tune: suggest", "suggest"), ("tune: apply", "apply")],
)
def test_the_tuner_is_off_unless_asked_for_and_yamls_off_is_no_boolean(
    include: Path, line: str, mode: str
) -> None:
    text = f"base_model: /m\nsft:\n  keep: 3\n  {line}\n"
    (include / "recipes" / "mine.yaml").write_text(text)
    assert load_recipe("mine").sft.tune == mode
