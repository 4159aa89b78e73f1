"""A small include/ folder that a test may fill, and the job descriptions that many tests need."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of include/ that the test may change."""
    folder = tmp_path / "include"
    shutil.copytree(ROOT / "include", folder)
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(folder))
    return folder
