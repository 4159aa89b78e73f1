"""Settings of the smallest Ray cluster."""

from __future__ import annotations

from typing import Any

# Settings of the Ray head's guard: one node with one simulated GPU.
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
