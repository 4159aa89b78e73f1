"""Slurm: describe a job, submit it once, watch it, cancel it."""
