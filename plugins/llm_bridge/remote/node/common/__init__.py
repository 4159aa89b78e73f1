"""Helpers that several programs on the nodes share; standard library only."""
