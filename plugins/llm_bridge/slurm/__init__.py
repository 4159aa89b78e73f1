"""Slurm: describe a job, submit it exactly once, poll it, cancel it."""
