"""Keep a task's attempts for the run page: in its state store, which outlives retries and clears."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llm_bridge.diagnosis.report import Diagnosis
from llm_bridge.task_state import TaskState

# {"attempts": [...]}, the oldest first, and the curves of one attempt, in parts below Airflow's limit of a value
# ([state_store] max_value_storage_bytes, 64 KB).
STORE_KEY = "llm_bridge_history"
CURVES_PREFIX = "llm_bridge_curves"
MAX_ATTEMPTS = 50
MAX_ATTEMPTS_WITH_CURVES = 10
MAX_PART_BYTES = 60_000
# Values of the live record that an attempt keeps.
_KEPT = ("state", "nodes", "partition", "started", "ended", "progress")


def submitted(task: TaskState, directory: str, *, name: str, job_id: str, gpus: int, kind: str) -> None:
    """Add an attempt, unless it is known: another try found it again.

    Args:
        task: The task.
        directory: The attempt's directory, its identity.
        name: Name of the job for people, such as ``Slurm job 12``.
        job_id: The Slurm job; of a Ray job, the one in which it runs.
        gpus: GPUs of the Slurm job; 0 of a Ray job, whose cluster has them.
        kind: ``slurm`` or ``ray``.
    """
    attempts = load(task)
    if any(attempt["directory"] == directory for attempt in attempts):
        return
    attempts.append(
        {
            "directory": directory,
            "name": name,
            "job_id": job_id,
            "gpus": gpus,
            "kind": kind,
            "try_number": task.try_number,
            "submitted": round(time.time(), 1),
        }
    )
    _save(task, attempts)


def ended(
    task: TaskState,
    directory: str,
    *,
    result: str,
    live: Any = None,
    diagnosis: Diagnosis | None = None,
    efficiency: Mapping[str, float] | None = None,
) -> None:
    """Complete an attempt.

    Args:
        task: The task.
        directory: The attempt's directory.
        result: ``success``, ``failed``, or ``ready`` for a Ray cluster that runs on.
        live: The task's XCom LIVE_XCOM, if any.
        diagnosis: Cause of the failure.
        efficiency: What its Slurm job used of what it requested. That of jobs that succeeded comes with the run's
            summary, in one query of accounting for all of them.
    """
    attempts = load(task)
    for number, attempt in enumerate(attempts):
        if attempt["directory"] != directory:
            continue
        attempt["result"] = result
        if isinstance(live, Mapping) and live.get("directory") == directory:
            attempt |= {name: live[name] for name in _KEPT if live.get(name) is not None}
            if curves := live.get("curves"):
                attempt["curves"] = _save_curves(task, number % MAX_ATTEMPTS_WITH_CURVES, directory, curves)
        if result != "ready":
            attempt.setdefault("ended", round(time.time(), 1))
        if diagnosis:
            attempt["diagnosis"] = diagnosis.as_dict()
        if efficiency:
            attempt["efficiency"] = dict(efficiency)
    _save(task, attempts)


def load(task: TaskState) -> list[dict[str, Any]]:
    """Return the task's attempts, the oldest first."""
    values = task.store.get(STORE_KEY)
    return [dict(attempt) for attempt in values["attempts"]] if isinstance(values, Mapping) else []


def _save(task: TaskState, attempts: list[dict[str, Any]]) -> None:
    attempts = attempts[-MAX_ATTEMPTS:]
    while len(attempts) > 1 and len(json.dumps(attempts)) > MAX_PART_BYTES:
        attempts = attempts[1:]
    task.store.set(STORE_KEY, {"attempts": attempts})


def _save_curves(task: TaskState, slot: int, directory: str, curves: Mapping[str, Any]) -> list[str]:
    """Store the curves in parts, each with the directory of its attempt; return the keys."""
    keys = []
    for number, part in enumerate(_parts(curves)):
        keys.append(f"{CURVES_PREFIX}.{slot}.{number}")
        task.store.set(keys[-1], {"directory": directory, "curves": part})
    return keys


def _parts(curves: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    part: dict[str, Any] = {}
    size = 0
    for name, curve in curves.items():
        length = len(json.dumps(curve)) + len(name) + 6
        if part and size + length > MAX_PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = curve
        size += length
    if part:
        yield part
