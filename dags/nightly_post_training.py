"""Airflow DAG: SFT → PPO → Hub every night, as the recipe says. Paused until somebody turns it on."""

import os

from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import load_recipe
from llm_bridge.pipeline import post_training

recipe = load_recipe(os.environ.get("LLM_BRIDGE_NIGHTLY_RECIPE", "gsm8k_llama32_1b"))
if recipe.schedule is None:
    raise ConfigError(
        f"include/recipes/{recipe.name}.yaml needs 'schedule', a cron line, to be trained every night"
    )

dag = post_training(
    "nightly_post_training",
    recipe=recipe.name,
    schedule=recipe.schedule,
    description=f"Every night: {recipe.description or recipe.name}",
)
