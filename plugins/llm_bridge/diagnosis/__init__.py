"""Diagnose failed attempts from evidence on the cluster, and decide the action that follows."""
