"""Provide an include/ folder that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from testing.paths import ROOT


@pytest.fixture
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of include/ that the test may change."""
    folder = tmp_path / "include"
    shutil.copytree(ROOT / "include", folder)
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(folder))
    return folder
