"""Modules that verl's own processes import."""
