"""Failures that are caused for real on the local cluster, for the tests and for ``make failures-report``."""
