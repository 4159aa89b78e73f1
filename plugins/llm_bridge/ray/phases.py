"""How long each phase of a Ray cluster's start took (``phases`` of ``cluster.json``: name -> epoch seconds)."""

from __future__ import annotations

from itertools import pairwise


def seconds(phases: dict[str, float]) -> dict[str, float]:
    """Phase -> seconds since the one before; the first one, ``allocated``, is where the others begin."""
    order = sorted(phases, key=lambda name: phases[name])
    return {name: round(phases[name] - phases[before], 1) for before, name in pairwise(order)}


def told(phases: dict[str, float]) -> str:
    """The phases as one line."""
    total = max(phases.values()) - min(phases.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {took} s" for name, took in seconds(phases).items())
    return f"ready {total:.1f} s after its nodes were allocated: {parts}"
