"""Run a Ray cluster as one Slurm job, and jobs on it through Ray's Jobs REST API. Imports no Airflow."""
