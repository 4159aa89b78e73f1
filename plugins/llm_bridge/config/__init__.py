"""Cluster files, recipes and what a user typed into the trigger form; all checked before anything runs."""
