"""What every launcher does around its work: read its settings, leave a result or a reason.

Standard library only, Python 3.9 or newer: on a cluster this runs before anything else is known to work.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional

Settings = dict[str, Any]


class JobError(Exception):
    """The stage cannot be done, or was not done; the text is what the user reads.

    :param text: what happened, where, and what to do next.
    :param retry: whether running the same job again could help.
    :param kind: the failure's class, a name of llm_bridge/failures/kinds.py, where the text does not show it.
    """

    def __init__(self, text: str, *, retry: bool = False, kind: Optional[str] = None) -> None:
        super().__init__(text)
        self.retry = retry
        self.kind = kind

    def as_json(self) -> dict[str, Any]:
        """Content of reason.json."""
        about = {"reason": str(self), "retry": self.retry}
        return {**about, "kind": self.kind} if self.kind else about


def say(text: str) -> None:
    """Print one line to the job's log, marked as ours."""
    print(f"[llm-bridge] {text}", flush=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None when there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all: readers on other nodes never see half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def run(stage: Callable[[Settings], Optional[dict[str, Any]]]) -> None:
    """Run a launcher: ``python LAUNCHER.py ATTEMPT_DIR/settings.json``.

    Leaves beside the settings ``result.json`` with what ``stage`` returned (nothing for None, which is what the
    other nodes of a job return), or ``reason.json`` (:meth:`JobError.as_json`) when it raised JobError, and then
    exits with 1. Any other exception is a bug and keeps its traceback.

    :param stage: does the work; gets the settings.
    """
    path = Path(sys.argv[1])
    settings = json.loads(path.read_text(encoding="utf-8"))
    if os.environ.get("SLURM_NODEID", "0") == "0":  # Slurm may run a job a second time in the same directory
        for name in ("result.json", "reason.json"):
            path.with_name(name).unlink(missing_ok=True)
    try:
        result = stage(settings)
    except JobError as error:
        write_json(path.with_name("reason.json"), error.as_json())
        print(f"[llm-bridge] error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    if result is not None:
        write_json(path.with_name("result.json"), result)
        say(f"done: {json.dumps(result, ensure_ascii=False)}")
