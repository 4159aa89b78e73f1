"""Harness of demo, benchmarks, and tests: real clusters, a test Hub, Airflow, and stand-ins for its users.

Nothing here imports ``demo``, ``benchmarks`` or ``tests``.
"""
