"""Airflow DAG of the tests: SFT of the recipe tiny_often every minute, and nothing else."""

from llm_bridge.pipeline.dag import post_training

dag = post_training("often", recipe="tiny_often", schedule="* * * * *")
