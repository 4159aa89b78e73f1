"""Versions of the packages that llm-bridge was tested with in jobs, by requirements file.

The files are in ``llm_bridge/pins``; ``tests/unit/test_requirements.py`` compares both.
"""

from __future__ import annotations

from collections.abc import Mapping

PINS: dict[str, dict[str, str]] = {
    "requirements-cluster.txt": {
        "torch": "2.13.0",
        "verl": "0.9.1",
        "ray": "2.60.0",
        "transformers": "5.10.4",
    },
    "requirements-cluster-vllm.txt": {
        "torch": "2.11.0",
        "verl": "0.9.1",
        "ray": "2.60.0",
        "transformers": "5.9.0",
        "vllm": "0.24.0",
    },
    "requirements-cluster-sglang.txt": {
        "torch": "2.11.0",
        "verl": "0.9.1",
        "ray": "2.60.0",
        "transformers": "5.8.1",
        "sglang": "0.5.13",
    },
}


def file_for(installed: Mapping[str, str | None], device: str) -> str:
    """Return the requirements file that an environment should follow.

    Args:
        installed: Package -> version; None for one that is not installed.
        device: Kind of device that trainings run on; ``cuda`` needs a rollout engine.
    """
    if installed.get("sglang"):
        return "requirements-cluster-sglang.txt"
    if installed.get("vllm") or device == "cuda":
        return "requirements-cluster-vllm.txt"
    return "requirements-cluster.txt"
