"""The whole pipeline on this machine: `make demo` runs `python -m demo run`. Nothing in it is mocked.

local_cluster gives a real Slurm cluster in namespaces, local_hub a Hub; Airflow, Ray and verl are what they are.
"""
