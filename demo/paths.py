"""Paths of the demo's files."""

from __future__ import annotations

import shutil
from pathlib import Path

from testing.paths import INCLUDE, ROOT, USUAL_HOME, home

BUILD = ROOT / "build"
DEMO = BUILD / "demo"
AIRFLOW_HOME = BUILD / "airflow"
REPORT = DEMO / "report.json"
ASSETS = DEMO / "assets"


def include_dir() -> Path:
    """Return `include/`, or for another LLM_BRIDGE_HOME a copy of it with that path in local.yaml."""
    if str(home()) == USUAL_HOME:
        return INCLUDE
    copy = DEMO / "include"
    shutil.copytree(INCLUDE, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    local = copy / "clusters" / "local.yaml"
    local.write_text(local.read_text().replace(USUAL_HOME, str(home())))
    return copy
