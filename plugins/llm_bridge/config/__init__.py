"""Cluster files, recipes and the fields of the trigger form; all are validated before anything runs."""
