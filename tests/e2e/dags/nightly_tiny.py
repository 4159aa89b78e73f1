"""Airflow DAG of the tests: SFT and PPO of the tiny recipe every night, without a second try."""

from llm_bridge.pipeline.dag import post_training

dag = post_training("nightly_tiny", recipe="nightly_tiny", schedule="0 2 * * *")
dag.params["stages"] = ["prepare", "sft", "ppo"]
for task in dag.tasks:
    task.retries = 0
