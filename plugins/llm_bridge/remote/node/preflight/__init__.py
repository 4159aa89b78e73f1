"""Checks of a job's nodes before its long work begins."""
