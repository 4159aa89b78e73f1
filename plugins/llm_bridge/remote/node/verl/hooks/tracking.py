"""Write the metrics of a training so that no crash loses them, and that no error in it ends the training.

verl imports this in each process of a training (IMPORTED_BY_VERL); only the one that logs creates a ``Tracking``. Its
own logger ``file`` (0.9.1) empties the file of a job that Slurm runs again, and a full disk or a value that it cannot
write ends the training, as does an error of any tracker.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from verl.utils import tracking as verl_tracking

from llm_bridge.remote.node.common.job_io import log_line
from llm_bridge.remote.node.verl import tracking

# Loggers whose error this process has reported.
_reported: set[str] = set()
_verl_init = verl_tracking.Tracking.__init__


class MetricsFile:
    """verl's logger ``file``, which appends whole lines.

    Args:
        project_name: Not used.
        experiment_name: Not used.
    """

    def __init__(self, project_name: str, experiment_name: str) -> None:
        self._path = Path(os.environ[tracking.FILE_VARIABLE])

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append a line. NaN and infinite values become null."""
        # Opened each time, as steps take seconds: a file system that was unreachable leaves a stale handle.
        row = {"step": step, "time": round(time.time(), 3), "data": data}
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
        with self._open() as file:
            file.write(orjson.dumps(row, default=_plain, option=options))

    def finish(self) -> None:
        """Do nothing: each line is in the file already."""

    def _open(self) -> Any:
        """Open the file, without a partial line that a crash or a full disk has left at its end."""
        file = open(self._path, "a+b")  # noqa: SIM115
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return file


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _init(
    self: Any,
    project_name: str,
    experiment_name: str,
    default_backend: str | Iterable[str] = "console",
    config: Any = None,
) -> None:
    """Start each logger for itself, so that the others work without the one that fails.

    Only a key that W&B refuses ends the training, before its first step.
    """
    started: dict[str, Any] = {}
    for name in [default_backend] if isinstance(default_backend, str) else default_backend:
        try:
            start = _start_wandb if name == "wandb" else _verl_init
            start(self, project_name, experiment_name, [name], config)
        except Exception as error:
            if name == "wandb" and tracking.is_refused(error):
                raise
            _report(name, error)
        else:
            started |= self.logger
    self.logger = started


def _start_wandb(*arguments: Any) -> None:
    """Start the W&B run, offline if its server does not answer.

    wandb.init waits for 90 s (WANDB_INIT_TIMEOUT), then raises a CommError.
    """
    import wandb

    try:
        _verl_init(*arguments)
    except Exception as error:
        if tracking.is_refused(error):
            raise
        command = tracking.sync_command(os.environ)
        log_line(
            f"WARNING: Weights & Biases: {error!r:.500}. Logging offline; upload it later with: {command}"
        )
        wandb.teardown()  # the session still has the run's id, and the variables of its start
        os.environ["WANDB_MODE"] = tracking.OFFLINE
        _verl_init(*arguments)
    tracking.note_wandb_run(Path(os.environ[tracking.FILE_VARIABLE]).parent)


def _log(self: Any, data: dict[str, Any], step: int, backend: Any = None) -> None:
    for name, logger in self.logger.items():
        if backend is None or name in backend:
            try:
                logger.log(data=data, step=step)
            except Exception as error:
                _report(name, error)


def _surviving(name: str, method: Any) -> Any:
    """Return a method that reports an exception instead of raising it."""

    def call(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            _report(name, error)

    return call


def _report(name: str, error: Exception) -> None:
    if name in _reported:
        return
    _reported.add(name)
    # Without the system's own text, which would look like the cause of a later failure.
    code = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    text = f"{type(error).__name__} {code}" if code else f"{error!r:.500}"
    log_line(f"WARNING: logger {name}: {text}. The training continues; its metrics are not logged there")


def _replace() -> None:
    verl_tracking.FileLogger = MetricsFile
    verl_tracking.Tracking.__init__ = _init
    verl_tracking.Tracking.log = _log
    for kind, name in (("Tracking", "finish"), ("ValidationGenerationsLogger", "log")):
        owner = getattr(verl_tracking, kind)
        setattr(owner, name, _surviving(f"{kind}.{name}", getattr(owner, name)))


_replace()
