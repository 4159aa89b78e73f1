"""A Ray cluster as small as it gets."""

from __future__ import annotations

from typing import Any

# What include/jobs/ray_guard.py is told: one node with one pretend GPU.
SETTINGS: dict[str, Any] = {
    "nodes": 1,
    "gpus_per_node": 1,
    "device": "cpu",
    "cpus_per_node": 2,
    "object_store_gib": 0.2,
    "temp_dir": "/tmp/ray",
    "ready_minutes": 3,
    "idle_minutes": None,
}
