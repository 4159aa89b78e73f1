"""Read a program's settings, and leave its result or the reason of its failure beside them.

Standard library only, Python 3.9 or newer: on a cluster this runs before any other dependency has been verified.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Reason

# Characters of a result in the log; that of an evaluation has its samples.
LOGGED_LENGTH = 2000

Settings = dict[str, Any]
# A stage's result; None from all nodes of a job but the first.
Result = Optional[dict[str, Any]]


class JobError(Exception):
    """A stage cannot run or has failed; the text is the message that the user reads.

    Args:
        text: What happened, where, and what to do next.
        retry: True where running the same job again could help.
        kind: The failure class, a name in ``llm_bridge/diagnosis/classes.py``, where the text does not show it.
    """

    def __init__(self, text: str, *, retry: bool = False, kind: str | None = None) -> None:
        super().__init__(text)
        self.retry = retry
        self.kind = kind

    def as_reason(self) -> Reason:
        """Return the content of ``reason.json``."""
        return Reason(str(self), retry=self.retry, kind=self.kind)


def log_line(text: str) -> None:
    """Print one line to the job's log, with llm-bridge's prefix."""
    print(f"[llm-bridge] {text}", flush=True)


def log_error(text: str) -> None:
    """Print one error to the job's standard error, with llm-bridge's prefix."""
    print(f"[llm-bridge] error: {text}", file=sys.stderr, flush=True)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None where it is missing or is not JSON."""
    return attempt_dir.read_json(str(path))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, so that readers on other nodes never see a part of it."""
    attempt_dir.write_json(str(path), value)


def attempt() -> Path:
    """Return the attempt's directory; absolute, because verl's workers start elsewhere."""
    return Path(sys.argv[1]).absolute().parent


def run(stage: Callable[[Settings], Result]) -> None:
    """Run one stage: ``python node.pyz PROGRAM ATTEMPT_DIR/settings.json``.

    Beside the settings this leaves ``result.json`` with the return value of ``stage`` (nothing for None), or
    ``reason.json`` where it raised :class:`JobError`; then the exit code is 1. Any other exception is a bug and keeps
    its traceback.

    Args:
        stage: Does the work; receives the settings.
    """
    if len(sys.argv) != 2:
        sys.exit(f"usage: python node.pyz {sys.argv[0]} ATTEMPT_DIR/{attempt_dir.SETTINGS}")
    path = Path(sys.argv[1])
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"[llm-bridge] error: cannot read the settings {path}: {error}")
    # Slurm may requeue a job, which then runs in the same directory.
    if os.environ.get("SLURM_NODEID", "0") == "0":
        for name in (attempt_dir.RESULT, attempt_dir.REASON):
            path.with_name(name).unlink(missing_ok=True)
    try:
        result = stage(settings)
    except JobError as error:
        write_json(path.with_name(attempt_dir.REASON), error.as_reason())
        log_error(str(error))
        sys.exit(1)
    if result is not None:
        write_json(path.with_name(attempt_dir.RESULT), result)
        text = json.dumps(result, ensure_ascii=False)
        more = f" ... ({len(text)} characters: {attempt_dir.RESULT})" if len(text) > LOGGED_LENGTH else ""
        log_line(f"done: {text[:LOGGED_LENGTH]}{more}")
