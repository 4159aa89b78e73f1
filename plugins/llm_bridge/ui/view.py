"""Assemble the run page's data from records of Airflow's database; nothing in here reads or asks anything else."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from llm_bridge.monitoring import history
from llm_bridge.monitoring.curves import thinned
from llm_bridge.monitoring.run_record import LIVE_XCOM
from llm_bridge.monitoring.wandb_run import address
from llm_bridge.pipeline.summary import ROWS
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.evaluate import report

if TYPE_CHECKING:
    from llm_bridge.ui.database import RunRecords, TaskRecord

RETURNED = "return_value"
CHECK, SUMMARY = "check", "summary"
# Directory of a training stage's checkpoints (pipeline/stages.py).
CHECKPOINTS = "checkpoints"
SACCT_FIELDS = "JobID,JobName%40,State%20,Elapsed,Timelimit,TotalCPU,MaxRSS,AllocTRES%60"
ORDER = {task: number for number, task in enumerate([CHECK, *ROWS.values()])}
# States of an attempt, for people and for the colours of the page.
QUEUED, RUNNING, READY, SUCCESS, FAILED, ENDED = "queued", "running", "ready", "success", "failed", "ended"
ACTIVE_TASKS = {"queued", "scheduled", "running", "deferred", "up_for_reschedule", "restarting"}


def listed(found: RunRecords) -> dict[str, Any]:
    """Return one row of the list of runs."""
    return {
        "dag_id": found.dag_id,
        "run_id": found.run_id,
        "state": found.state,
        "started": found.started,
        "ended": found.ended,
        "recipe": found.conf.get("recipe"),
        "run_name": found.conf.get("run_name"),
    }


def run(found: RunRecords, now: float | None = None) -> dict[str, Any]:
    """Return all of a run but its curves.

    Args:
        found: The run's records.
        now: Epoch seconds; the present if None.
    """
    now = time.time() if now is None else now
    plan = _returned(found, CHECK)
    recipe = _mapping(plan.get("recipe"))
    attempts = [attempt for task in _tasks(found) for attempt in _attempts(found, task, now)]
    used, lost = gpu_hours(attempts)
    return {
        **listed(found),
        "recipe": recipe.get("name") or found.conf.get("recipe"),
        "run_name": plan.get("run_name"),
        "cluster": plan.get("cluster"),
        "cluster_choice": plan.get("cluster_choice") or "",
        "directory": plan.get("directory"),
        "base_model": recipe.get("base_model"),
        "algorithm": _mapping(recipe.get("ppo")).get("algorithm")
        if "ppo" in (plan.get("stages") or ())
        else None,
        "changes": plan.get("changes") or [],
        "started_from": _started_from(plan),
        "settings": dict(_flat(recipe)),
        "now": now,
        "queued": found.queued,
        "tasks": [
            {
                "task_id": task.task_id,
                "state": task.state,
                "try_number": task.try_number,
                "max_tries": task.max_tries,
                "started": task.started,
                "ended": task.ended,
                "link": _task_link(found, task.task_id),
            }
            for task in _tasks(found)
        ],
        "attempts": attempts,
        "gpu_hours": used,
        "lost_gpu_hours": lost,
        "data": {
            stage: _mapping(_mapping(data).get("report"))
            for stage, data in _mapping(_result(found, ROWS["prepare"]).get("data")).items()
        },
        "tuning": _tuning(found),
        "evaluation": _evaluation(found),
        "gate": _returned(found, "upload.gate"),
        "model": _result(found, ROWS["upload"]),
        "checkpoints": _checkpoints(found, plan),
        "links": _links(found),
        "commands": _commands(plan, attempts),
    }


def curves(found: RunRecords, points: int) -> list[dict[str, Any]]:
    """Return the curves of a run, each with ``task``, ``name``, ``attempt``, ``x`` and ``y``.

    Args:
        found: The run's records.
        points: Maximum number of points of one curve.
    """
    rows = []
    for task in _tasks(found):
        names = {attempt["directory"]: number for number, attempt in enumerate(_history(task), start=1)}
        for directory, of_attempt in _stored_curves(task):
            for name, values in of_attempt.items():
                rows.append(
                    {
                        "task": task.task_id,
                        "name": name,
                        "attempt": names.get(directory, 1),
                        **thinned(values, points),
                    }
                )
    return rows


def gpu_hours(attempts: list[dict[str, Any]]) -> tuple[float, float]:
    """Return GPU-hours of all Slurm jobs of a run, each counted once, and those that were lost with failed attempts."""
    jobs: dict[str, tuple[float, float, int]] = {}
    for attempt in attempts:
        if not attempt["started"] or not attempt["gpus"]:
            continue
        end = attempt["ended"] or attempt["until"]
        first, last, gpus = jobs.get(attempt["job_id"], (attempt["started"], end, attempt["gpus"]))
        jobs[attempt["job_id"]] = (min(first, attempt["started"]), max(last, end), gpus)
    used = sum(max(0.0, last - first) * gpus / 3600 for first, last, gpus in jobs.values())
    lost = sum((attempt["diagnosis"] or {}).get("lost_gpu_hours") or 0.0 for attempt in attempts)
    return used, lost


# ---- attempts


def _tasks(found: RunRecords) -> list[TaskRecord]:
    """Return the tasks in the order of the pipeline; those of other DAGs by their start."""

    def key(task: TaskRecord) -> tuple[int, float, str]:
        return ORDER.get(task.task_id, len(ORDER)), task.started or float("inf"), task.task_id

    return sorted(found.tasks.values(), key=key)


def _history(task: TaskRecord) -> list[dict[str, Any]]:
    """Return the recorded attempts of a task; with the live one if only its trigger has recorded it."""
    stored = _mapping(task.stored.get(history.STORE_KEY)).get("attempts")
    attempts = [dict(each) for each in stored] if isinstance(stored, list) else []
    live = _live(task)
    if live and all(each["directory"] != live["directory"] for each in attempts):
        attempts.append({"directory": live["directory"], "submitted": live.get("started")})
    return attempts


def _live(task: TaskRecord) -> dict[str, Any]:
    live = _mapping(task.xcoms.get(LIVE_XCOM))
    return live if live.get("directory") else {}


def _attempts(found: RunRecords, task: TaskRecord, now: float) -> Iterator[dict[str, Any]]:
    recorded, live, usage = _history(task), _live(task), _usage(found)
    for number, attempt in enumerate(recorded, start=1):
        newest = number == len(recorded)
        own = live if live.get("directory") == attempt["directory"] else {}
        merged = {**own, **attempt} if attempt.get("result") else {**attempt, **own}
        if merged.get("kind") == "ray":
            # Its Slurm job runs already; its own start is known at its end.
            merged.setdefault("started", merged.get("submitted"))
        started, ended = merged.get("started"), merged.get("ended")
        state = _state(merged, task, newest)
        if state == READY and (over := _ray_end(found, merged, newest)):
            state, ended = ENDED, over
        if state in (ENDED, FAILED, SUCCESS) and not ended:
            ended = task.ended or found.ended or merged.get("updated")
        yield {
            "task": task.task_id,
            "number": number,
            "name": merged.get("name") or "job",
            "kind": merged.get("kind", "slurm"),
            "job_id": str(merged.get("job_id") or ""),
            "directory": attempt["directory"],
            "state": state,
            "slurm_state": merged.get("state"),
            "reason": merged.get("reason") if state == QUEUED else "",
            "expected_start": merged.get("expected_start") if state == QUEUED else None,
            "submitted": merged.get("submitted"),
            "started": started,
            "ended": ended,
            "until": ended or found.ended or now,
            "nodes": merged.get("nodes") or "",
            "partition": merged.get("partition") or "",
            "gpus": merged.get("gpus") or 0,
            "progress": merged.get("progress") or {},
            "updated": own.get("updated"),
            "diagnosis": merged.get("diagnosis"),
            "efficiency": _mapping(merged.get("efficiency")) or usage.get(attempt["directory"]) or {},
        }


def _usage(found: RunRecords) -> dict[str, dict[str, Any]]:
    """Return what accounting says of the run's jobs, by directory: from the summary, which asks for all of them."""
    summary = found.tasks.get(SUMMARY)
    rows = _mapping(summary.xcoms.get(SUMMARY)).get("efficiency") if summary else None
    return {row["directory"]: row for row in rows or () if isinstance(row, dict) and "directory" in row}


def _state(attempt: Mapping[str, Any], task: TaskRecord, newest: bool) -> str:
    if attempt.get("result") in (SUCCESS, FAILED, READY):
        return str(attempt["result"])
    if attempt.get("ended") or not newest or task.state not in ACTIVE_TASKS:
        # Its task was marked or cleared, or has not been resumed yet.
        return ENDED
    return RUNNING if attempt.get("started") else QUEUED


def _ray_end(found: RunRecords, attempt: Mapping[str, Any], newest: bool) -> float | None:
    """Return the end of a Ray cluster that became ready: that of the task which ends it, else of the last job on it.

    The run's own end is later if the run was cleared and the cluster was not needed again.
    """
    down = found.tasks.get("ppo.ray_down")
    if (
        newest
        and down
        and down.state in (SUCCESS, FAILED)
        and (down.ended or 0) >= (attempt.get("started") or 0)
    ):
        return down.ended
    jobs = [each for task in found.tasks.values() for each in _history(task) if each.get("kind") == "ray"]
    ends = [job["ended"] for job in jobs if job.get("job_id") == attempt.get("job_id") and job.get("ended")]
    if ends and (found.ended or not newest):
        return float(max(ends))
    return found.ended


def _stored_curves(task: TaskRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the directory and the curves of each attempt, the oldest first; of one that runs those of its trigger."""
    live = _live(task)
    for attempt in _history(task):
        directory = attempt["directory"]
        if live.get("directory") == directory and live.get("curves"):
            yield directory, live["curves"]
            continue
        merged: dict[str, Any] = {}
        for key in attempt.get("curves") or ():
            part = _mapping(task.stored.get(key))
            if part.get("directory") == directory:
                merged |= _mapping(part.get("curves"))
        if merged:
            yield directory, merged


# ---- results


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _returned(found: RunRecords, task_id: str) -> dict[str, Any]:
    task = found.tasks.get(task_id)
    return _mapping(task.xcoms.get(RETURNED)) if task else {}


def _result(found: RunRecords, task_id: str) -> dict[str, Any]:
    return _mapping(_returned(found, task_id).get("result"))


def _tuning(found: RunRecords) -> dict[str, Any] | None:
    """Return what SFT's tuner measured (remote/node/verl/tuning.py); None where it did not run."""
    tuning = _mapping(_result(found, ROWS["sft"]).get("tuning"))
    if not tuning:
        return None
    measured = tuning.get("measured")
    return {
        "text": str(tuning.get("text") or ""),
        "now": tuning.get("now"),
        "best": tuning.get("best"),
        "settings": _mapping(tuning.get("settings")),
        "measured": [str(line) for line in measured] if isinstance(measured, list) else [],
        "applied": bool(tuning.get("applied")),
    }


def _evaluation(found: RunRecords) -> dict[str, Any] | None:
    evaluation = _result(found, ROWS["evaluate"]).get("evaluation")
    return report.in_order(evaluation) if isinstance(evaluation, dict) else None


def _checkpoints(found: RunRecords, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where the checkpoints and the models are; of a training that has failed those to resume from."""
    rows = []
    for name in ("sft", "ppo"):
        result, task = _result(found, ROWS[name]), found.tasks.get(ROWS[name])
        if path := result.get("checkpoint_dir"):
            rows.append({"stage": name, "path": str(path), "step": result.get("step")})
            continue
        diagnoses = [_mapping(attempt.get("diagnosis")) for attempt in (_history(task) if task else ())]
        steps = [step for diagnosis in diagnoses if (step := diagnosis.get("step")) is not None]
        if steps and plan.get("directory"):
            path = f"{plan['directory']}/{name}/{CHECKPOINTS}"
            rows.append({"stage": f"{name}, not complete", "path": path, "step": steps[-1]})
    for name in ("sft merge", "merge"):
        result = _result(found, ROWS[name])
        if path := result.get("model_path"):
            rows.append({"stage": name, "path": str(path), "step": result.get("step")})
    return rows


def _links(found: RunRecords) -> list[dict[str, str]]:
    rows = []
    for task in _tasks(found):
        for key, name in (("ray_dashboard", "Ray dashboard"), ("wandb_run", "W&B run")):
            if url := address(task.xcoms.get(key)):
                rows.append({"name": f"{name} ({task.task_id})", "url": url})
    if url := address(_result(found, ROWS["upload"]).get("url")):
        rows.append({"name": "Model on the Hub", "url": url})
    unique = {row["url"]: row for row in rows}
    return list(unique.values())


def _task_link(found: RunRecords, task_id: str) -> str:
    name, _, index = task_id.partition(" [")
    mapped = f"/mapped/{index.rstrip(']')}" if index else ""
    return f"/dags/{quote(found.dag_id, safe='')}/runs/{quote(found.run_id, safe='')}/tasks/{quote(name)}{mapped}"


def _commands(plan: Mapping[str, Any], attempts: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return commands to copy, for a shell on the login node."""
    rows = []
    for attempt in attempts:
        if attempt["state"] not in (QUEUED, RUNNING, FAILED):
            continue
        label = f"{attempt['task']}, attempt {attempt['number']}"
        log = shlex.quote(f"{attempt['directory']}/{attempt_dir.OUTPUT}")
        rows.append({"name": f"Follow the output of {label}", "command": f"tail -n 100 -f {log}"})
        if attempt["job_id"] and attempt["state"] != FAILED:
            job = shlex.quote(attempt["job_id"])
            rows.append({"name": f"State of {label} in Slurm", "command": f"scontrol show job {job}"})
    if jobs := dict.fromkeys(attempt["job_id"] for attempt in attempts if attempt["job_id"]):
        command = f"sacct -j {shlex.quote(','.join(jobs))} -o {SACCT_FIELDS}"
        rows.append({"name": "Slurm's accounting of all jobs of the run", "command": command})
    if directory := plan.get("directory"):
        rows.append({"name": "Files of the run", "command": f"ls -l {shlex.quote(str(directory))}"})
    return rows


def _started_from(plan: Mapping[str, Any]) -> str | None:
    """Return the run or the model that the run started from, and at which stage."""
    start = _mapping(plan.get("start"))
    source = start.get("run") or start.get("model")
    return f"{source}, at stage {start.get('stage')}" if source else None


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a recipe as KEY.KEY -> value, to compare runs."""
    for key, value in _mapping(values).items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value
