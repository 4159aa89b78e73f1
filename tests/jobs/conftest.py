"""The launchers of include/jobs, importable as on the cluster; the cluster's Python; small helpers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "include" / "jobs"
CLUSTER_ENV = Path(os.environ.get("LLM_BRIDGE_HOME", "/var/tmp/llm-bridge")) / "cluster-env"

sys.path[:0] = [str(JOBS), str(JOBS / "in_verl")]


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
        [cluster_python, ROOT / "demo" / "make_assets.py", "--out", directory],
        check=True,
        capture_output=True,
    )
    return directory


@pytest.fixture(scope="session")
def launch(cluster_python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a launcher to its end, as a batch script does, with only these variables added."""

    def run(name: str, settings: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "HF_", "RAY_"))
        }
        return subprocess.run(
            [cluster_python, str(JOBS / name), str(settings)],
            cwd=settings.parent,
            env={**kept, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
