"""The environment in which this program runs."""

from __future__ import annotations

import sys
from pathlib import Path

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import read_json


def environment_hash() -> str | None:
    """Return the hash of the pins from which install-environment built it; None for an environment made by hand."""
    found = read_json(Path(sys.prefix) / attempt_dir.ENVIRONMENT)
    return str(found["hash"]) if isinstance(found, dict) and "hash" in found else None
