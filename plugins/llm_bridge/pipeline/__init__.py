"""The post-training DAG: from recipe and trigger form to a plan, job specifications, tasks and a summary."""
