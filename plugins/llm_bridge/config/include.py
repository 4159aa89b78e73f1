"""Find the folder of the files that users edit."""

from __future__ import annotations

import os
from pathlib import Path


def include_dir() -> Path:
    """Return the folder of the files that users edit.

    ``LLM_BRIDGE_INCLUDE`` if set, else ``include/`` beside the plugins folder that has this package, else (installed
    as a wheel) ``include/`` in ``AIRFLOW_HOME``.
    """
    if given := os.environ.get("LLM_BRIDGE_INCLUDE"):
        return Path(given)
    beside = Path(__file__).resolve().parents[3] / "include"
    return (
        beside
        if beside.is_dir()
        else Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "include"
    )
