"""Sensors that wait for a Slurm or Ray job that another task submitted."""
