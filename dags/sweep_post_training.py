"""Airflow DAG: SFT → PPO → Hub with each combination of some settings, started from the UI, and their comparison."""

# Airflow only parses files that contain the words "airflow" and "dag" ([core] dag_discovery_safe_mode).
from llm_bridge.pipeline.sweep import sweep_post_training

dag = sweep_post_training()
