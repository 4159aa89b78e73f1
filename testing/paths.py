"""Folders of this repository, and of the environments that ``make setup`` installs."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DAGS, PLUGINS, INCLUDE = ROOT / "dags", ROOT / "plugins", ROOT / "include"

# As in include/clusters/local.yaml; another LLM_BRIDGE_HOME needs another file.
USUAL_HOME = "/var/tmp/llm-bridge"


def home() -> Path:
    """Return the folder of environments and clusters: ``$LLM_BRIDGE_HOME``."""
    return Path(os.environ.get("LLM_BRIDGE_HOME") or USUAL_HOME)


def cluster_python() -> Path:
    """Return the Python that jobs run with: torch, verl, transformers."""
    return home() / "cluster-env" / "bin" / "python"


def airflow_python() -> Path:
    """Return the Python that Airflow runs with."""
    return home() / "airflow-env" / "bin" / "python"
