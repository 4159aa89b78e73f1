"""Measurements and reports that are made by running the real thing."""
