"""Ray's command line, held until standard input ends, with a stand-in for Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.ray import ray_cli
from testing.paths import PLUGINS

RAY = """
import sys
print("loaded", flush=True)
def main():
    try:
        import ray.serve
    except ImportError:
        from ray._private import services
        print("without serve", *sys.argv[1:], services.get_node("gcs", "n1"), flush=True)
"""
SERVICES = """
calls = []
def get_node(gcs, node):
    calls.append(node)
    if len(calls) < 3:
        raise RuntimeError("no such node")
    return f"{node} after {len(calls)} calls"
"""


def test_ray_is_loaded_at_once_and_runs_when_standard_input_ends(tmp_path: Path) -> None:
    modules = {"_private/services": SERVICES, "scripts/scripts": RAY}
    for name, text in {
        "__init__": "",
        "serve": "",
        "_private/__init__": "",
        "scripts/__init__": "",
        **modules,
    }.items():
        file = tmp_path / "ray" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(PLUGINS)!r}]\n"
    code += "from llm_bridge.remote.node.ray.ray_cli import main; main()"
    pipe = subprocess.PIPE
    argv = [sys.executable, "-I", "-S", "-c", code, "start", "--head"]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == "loaded\n"
        time.sleep(0.2)
        assert process.poll() is None
        process.stdin.close()
        assert process.stdout.read() == "without serve start --head n1 after 3 calls\n"


def test_a_raylet_that_ends_before_it_has_registered_is_an_error_at_once(tmp_path: Path) -> None:
    program = tmp_path / "raylet"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)

    def get_node() -> Any:
        raise RuntimeError("no such node")

    with (
        subprocess.Popen([program]),
        pytest.raises(ray_cli.RayletEnded, match="the raylet ended during startup"),
    ):
        ray_cli.until_registered(get_node)()


def test_other_errors_of_the_lookup_are_not_retried() -> None:
    def get_node() -> Any:
        raise ValueError("an invalid address")

    with pytest.raises(ValueError, match="an invalid address"):
        ray_cli.until_registered(get_node)()
