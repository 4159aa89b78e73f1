"""The whole pipeline on this machine: `make demo` runs `python -m demo run`. Nothing in it is mocked.

testing.local_cluster provides a real Slurm cluster in namespaces, testing.local_hub a Hub; Airflow, Ray and verl are
unmodified.
"""
