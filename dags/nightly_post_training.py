"""Airflow DAGs: one for each recipe with a schedule, SFT → PPO → Hub. Paused until they are turned on."""

# Airflow only parses files that contain the words "airflow" and "dag" ([core] dag_discovery_safe_mode).
from llm_bridge.config.loader import nightly_recipes
from llm_bridge.naming import slug
from llm_bridge.pipeline.dag import post_training

for recipe, schedule in nightly_recipes().items():
    dag = post_training(
        f"nightly_{slug(recipe)}",
        recipe=recipe,
        schedule=schedule,
        description=f"Post-training by recipe {recipe} on its schedule",
    )
    globals()[dag.dag_id] = dag
