"""Wait in Airflow's triggerer for jobs, and for services that are unavailable."""
