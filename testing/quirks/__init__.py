"""Quirks of other people's Slurm sites, played on the local cluster for tests and for ``make sites-report``."""
