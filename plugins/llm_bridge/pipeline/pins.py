"""Versions of the packages that llm-bridge was tested with in jobs, from its requirements files."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llm_bridge.slurm import environment_build

# Packages that the doctor compares; a file has only its own engine's.
COMPARED = ("torch", "verl", "ray", "transformers", "vllm", "sglang")
_PIN = re.compile(r"^([\w-]+)(?:\[[\w,-]+\])?==(\S+)", re.MULTILINE)


def versions(engine: str) -> dict[str, str]:
    """Return package -> tested version, of the compared packages.

    Args:
        engine: Key of ``environment_build.PINS``.
    """
    found = dict(_PIN.findall(environment_build.pins(engine)))
    return {name: found[name] for name in COMPARED if name in found}


def engine_of(installed: Mapping[str, str | None], device: str) -> str:
    """Return the engine whose requirements file an environment should follow.

    Args:
        installed: Package -> version; None for one that is not installed.
        device: Kind of device that trainings run on; ``cuda`` needs a rollout engine.
    """
    if installed.get("sglang"):
        return "sglang"
    return "vllm" if installed.get("vllm") or device == "cuda" else "cpu"
