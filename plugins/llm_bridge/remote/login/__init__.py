"""Helpers that run on the login node with Python 3.6 or newer and the standard library only."""
