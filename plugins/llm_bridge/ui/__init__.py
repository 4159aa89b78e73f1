"""Run page: what the runs of llm-bridge wrote, in Airflow's own UI."""
