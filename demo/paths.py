"""Where things lie."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
DEMO = BUILD / "demo"
AIRFLOW_HOME = BUILD / "airflow"
DAGS, PLUGINS = ROOT / "dags", ROOT / "plugins"
REPORT = DEMO / "report.json"
ASSETS = DEMO / "assets"

# What include/clusters/local.yaml has in it; another LLM_BRIDGE_HOME needs another file.
USUAL_HOME = "/var/tmp/llm-bridge"


def home() -> Path:
    """Where environments and clusters lie: `$LLM_BRIDGE_HOME`."""
    return Path(os.environ.get("LLM_BRIDGE_HOME") or USUAL_HOME)


def cluster_python() -> Path:
    """The Python that jobs run with: torch, verl, transformers."""
    return home() / "cluster-env" / "bin" / "python"


def airflow_python() -> Path:
    """The Python that Airflow runs with."""
    return home() / "airflow-env" / "bin" / "python"


def include_dir() -> Path:
    """`include/`, or a copy of it whose local.yaml names this LLM_BRIDGE_HOME."""
    include = ROOT / "include"
    if str(home()) == USUAL_HOME:
        return include
    copy = DEMO / "include"
    shutil.copytree(include, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    local = copy / "clusters" / "local.yaml"
    local.write_text(local.read_text().replace(USUAL_HOME, str(home())))
    return copy
