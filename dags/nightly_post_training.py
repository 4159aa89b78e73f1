"""Airflow DAG: SFT → PPO → Hub every night, on the recipe's schedule. Paused until it is turned on."""

import os

from llm_bridge.config.loader import load_recipe
from llm_bridge.exceptions import ConfigError
from llm_bridge.pipeline.dag import post_training

recipe = load_recipe(os.environ.get("LLM_BRIDGE_NIGHTLY_RECIPE", "gsm8k_llama32_1b"))
if recipe.schedule is None:
    raise ConfigError(
        f"include/recipes/{recipe.name}.yaml: nightly_post_training needs the key 'schedule', a cron line. Set it, or "
        "name another recipe in the environment variable LLM_BRIDGE_NIGHTLY_RECIPE"
    )

dag = post_training(
    "nightly_post_training",
    recipe=recipe.name,
    schedule=recipe.schedule,
    description=f"Every night: {recipe.description or recipe.name}",
)
