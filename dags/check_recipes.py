"""Airflow shows the errors of all recipes as an import error of this file, which has no DAG.

A recipe with a wrong key or cron line may have no nightly DAG that could report it.
"""

# Airflow only parses files that contain the words "airflow" and "dag" ([core] dag_discovery_safe_mode).
from llm_bridge.config.loader import check_recipes

check_recipes()
