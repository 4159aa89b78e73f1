"""Operators that submit, cancel and clean up jobs on Slurm clusters and Ray, and upload models to the Hub."""
