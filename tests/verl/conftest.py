"""The programs of a job's node archive, run with the cluster's Python as a batch script runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir, node_archive
from testing.paths import ROOT

CLUSTER_ENV = Path(os.environ.get("LLM_BRIDGE_HOME", "/var/tmp/llm-bridge")) / "cluster-env"


@pytest.fixture(scope="session")
def cluster_python() -> str:
    """The Python that jobs run with: torch and verl are there only."""
    python = CLUSTER_ENV / "bin" / "python"
    assert python.exists(), f"{python} does not exist: make setup"
    return str(python)


@pytest.fixture(scope="session")
def assets(cluster_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tiny-llama and gsm8k-tiny."""
    directory = tmp_path_factory.mktemp("assets")
    subprocess.run(
        [cluster_python, ROOT / "testing" / "make_assets.py", "--out", directory],
        check=True,
        capture_output=True,
    )
    return directory


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs, as an attempt's directory gets them."""
    path = tmp_path_factory.mktemp("archive") / attempt_dir.NODE_ARCHIVE
    path.write_bytes(node_archive.build())
    return path


@pytest.fixture(scope="session")
def command(cluster_python: str, archive: Path) -> list[str]:
    """The beginning of each program's command line."""
    return [cluster_python, str(archive)]


@pytest.fixture(scope="session")
def launch(command: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program to its end, as a batch script does, with only these variables added."""

    def run(program: str, settings: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "HF_", "RAY_"))
        }
        return subprocess.run(
            [*command, program, str(settings)],
            cwd=settings.parent,
            env={**kept, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
