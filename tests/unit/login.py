"""The helpers of include/login, imported as boot.py does it on the login node."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

LOGIN = Path(__file__).resolve().parents[2] / "include" / "login"


def load(*names: str) -> Any:
    """Load helpers, those that are imported first; the last one is returned."""
    module = None
    for name in names:
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(
            compile((LOGIN / f"{name}.py").read_text(encoding="utf-8"), f"{name}.py", "exec"), module.__dict__
        )
    return module
