"""Ray: a cluster as one Slurm job, and jobs on it through the Jobs REST API."""
