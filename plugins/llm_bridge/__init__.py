"""llm-bridge: post-training of language models on Slurm and Ray, driven by Airflow."""
