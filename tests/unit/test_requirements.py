"""The environments of jobs: one file of pins for CPUs, and one for each rollout engine with GPUs."""

from __future__ import annotations

import re

import pytest

from llm_bridge.pipeline.pins import versions
from testing.paths import ROOT

FOLDER = ROOT / "plugins" / "llm_bridge" / "pins"
# Pins that an engine does not allow to equal those for CPUs.
DIFFERENT = {
    "vllm": {"torch", "transformers", "numpy", "setuptools", "fastapi"},
    "sglang": {"torch", "transformers", "numpy", "setuptools"},
}


def pins(name: str) -> dict[str, str]:
    """Package -> version."""
    found = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", (FOLDER / name).read_text(), re.MULTILINE)
    return {package.lower().replace("_", "-"): version for package, version in found}


@pytest.mark.parametrize("engine", DIFFERENT)
def test_an_engines_environment_has_the_pins_of_the_tested_one_where_the_engine_allows_it(
    engine: str,
) -> None:
    tested, gpu = pins("requirements-cluster.txt"), pins(f"requirements-cluster-{engine}.txt")
    differing = {package for package in tested if gpu.get(package) != tested[package]}
    assert differing == DIFFERENT[engine]
    assert engine in gpu


def test_the_quick_start_names_the_environment_of_each_engine() -> None:
    text = (ROOT / "docs" / "quickstart.md").read_text()
    assert "install-environment" in text and all(f"--engine {engine}" in text for engine in ("sglang", "cpu"))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_doctor_compares_with_the_pins_of_the_engines_file(engine: str) -> None:
    found = versions(engine)
    assert set(found) == {"torch", "verl", "ray", "transformers", engine}
    assert found.items() <= pins(f"requirements-cluster-{engine}.txt").items()
