"""Measure how long each phase of a Ray cluster's start took (``phases`` of ``cluster.json``: name -> epoch seconds)."""

from __future__ import annotations

from itertools import pairwise


def seconds(phases: dict[str, float]) -> dict[str, float]:
    """Return phase -> seconds since the previous phase, without the first phase, ``allocated``."""
    order = sorted(phases, key=lambda name: phases[name])
    return {name: round(phases[name] - phases[before], 1) for before, name in pairwise(order)}


def describe(phases: dict[str, float]) -> str:
    """Return the durations of the phases as one line."""
    total = max(phases.values()) - min(phases.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {took} s" for name, took in seconds(phases).items())
    return f"ready {total:.1f} s after its nodes were allocated: {parts}"
