"""Encode calls of helpers on the login node, which ``remote/login/boot.py`` loads and runs.

The text of the helper is sent with each call, so nothing has to be installed on the login node, and there cannot be two
versions of a helper.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

PACKAGE = "llm_bridge.remote"
_SHARED = ("attempt_dir", "messages")
# Helpers that are short and frequent: one process on the login node answers them all (serve.py).
SERVED = frozenset({"slurm_command", "stage_result", "submit", "list_attempts", "active_jobs", "ray_request"})
# Helper -> modules in the order in which they are loaded, the helper itself last.
MODULES = {
    "slurm_command": (*_SHARED, "login.slurm_command"),
    "stage_result": (*_SHARED, "login.stage_result"),
    "submit": (*_SHARED, "login.slurm_command", "login.stage_result", "login.submit"),
    "list_attempts": (
        *(*_SHARED, "login.slurm_command", "login.stage_result", "login.submit"),
        "login.list_attempts",
    ),
    "active_jobs": (*_SHARED, "login.slurm_command", "login.active_jobs"),
    "poll_jobs": (*_SHARED, "login.poll_jobs"),
    "serve": (*_SHARED, "login.serve"),
    "ray_request": (*_SHARED, "login.http_errors", "login.ray_request"),
    "check_site": (*_SHARED, "hub_status", "login.http_errors", "login.hub_access", "login.check_site"),
    "describe_site": (*_SHARED, "login.describe_site"),
    "start_from": (*_SHARED, "login.stage_result", "login.start_from"),
    "old_runs": (*_SHARED, "login.old_runs"),
    "evidence": (*_SHARED, "login.evidence"),
}


def argv(python: str) -> list[str]:
    """Return the command that runs a helper, whose text and request are sent on standard input.

    Args:
        python: Absolute path of the login node's Python, 3.6 or newer.
    """
    # -I: neither files in the home directory, which is the current one, such as a user's types.py, nor PYTHONHOME,
    # PYTHONPATH or packages of the user replace the standard library's modules.
    # One line, because csh accepts no line end in quotes.
    return [python, "-I", "-c", f"exec({json.dumps(_source('login.boot'))})"]


def first_line(helper: str, request: dict[str, Any]) -> bytes:
    """Return the first line of standard input for a helper, with its line end.

    Args:
        helper: Key of ``MODULES``.
        request: JSON values for the helper's ``main``.
    """
    main = f"{PACKAGE}.{MODULES[helper][-1]}"
    return json.dumps({"modules": modules(helper), "main": main, "request": request}).encode() + b"\n"


def modules(helper: str) -> dict[str, str]:
    """Return dotted name -> source of a helper's modules, in the order in which they are loaded."""
    return {f"{PACKAGE}.{name}": _source(name) for name in MODULES[helper]}


@functools.cache  # called in the triggerer's event loop, which must not read files
def _source(name: str) -> str:
    folder, _, stem = name.rpartition(".")
    return resources.files(PACKAGE).joinpath(folder, f"{stem}.py").read_text(encoding="utf-8")
