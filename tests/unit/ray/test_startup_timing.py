"""Phases of a Ray cluster's start."""

from __future__ import annotations

from llm_bridge.ray.startup_timing import describe, seconds

# As in `cluster.json`: not in the order of time.
PHASES = {
    "verified": 107.06,
    "allocated": 100.0,
    "environment": 100.4,
    "head_up": 104.0,
    "workers_joined": 107.0,
}


def test_each_phase_has_the_seconds_since_the_previous_one() -> None:
    assert seconds(PHASES) == {"environment": 0.4, "head_up": 3.6, "workers_joined": 3.0, "verified": 0.1}
    assert describe(PHASES) == (
        "ready 7.1 s after its nodes were allocated: "
        "environment 0.4 s, head up 3.6 s, workers joined 3.0 s, verified 0.1 s"
    )


def test_a_run_without_a_ray_cluster_has_no_phases() -> None:
    assert seconds({}) == {}
