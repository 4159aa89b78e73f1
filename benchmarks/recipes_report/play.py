"""Run twins and bad inputs on a local stack, as a user does: through the trigger form of post_training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.recipes_report.bad_inputs import BAD_INPUTS, BadInput
from llm_bridge.remote import attempt_dir
from testing.local_cluster import LocalCluster
from testing.stack import DAG, LocalStack
from testing.twins import BY_NAME, TWINS, Twin, scores

SSH_PORT, AIRFLOW_PORT = 22822, 8280
TIMEOUT_SECONDS = 1200


@contextmanager
def player(folder: Path) -> Iterator[Callable[[Twin | BadInput], dict[str, Any]]]:
    """Start a stack and yield a function that returns the report's row of a twin or of a bad input."""
    # An earlier report's runs have the same names.
    for place in (folder / "include", folder / "airflow" / "logs"):
        shutil.rmtree(place, ignore_errors=True)
    stack = LocalStack(folder, LocalCluster("recipes", ssh_port=SSH_PORT), port=AIRFLOW_PORT)
    # Before Airflow reads which recipes there are.
    for twin in TWINS:
        twin.write_recipe(stack.site)
    for bad in BAD_INPUTS:
        _spoil(stack, bad)
    try:
        stack.start()
        stack.ready(DAG)
        yield lambda case: _train(stack, case) if isinstance(case, Twin) else _refuse(stack, case)
    finally:
        stack.stop()


def _train(stack: LocalStack, twin: Twin) -> dict[str, Any]:
    twin.write_data(stack.site)
    began = time.monotonic()
    state = stack.run(DAG, twin.recipe, TIMEOUT_SECONDS, recipe=twin.name, cluster=stack.site.name)
    took = round(time.monotonic() - began, 1)
    summary = stack.api.xcom(DAG, twin.recipe, "summary", "summary") or {}
    stages = {row["name"]: row["run_s"] for row in summary.get("stages", []) if row["state"] == "success"}
    metric, before, after = scores(stack, DAG, twin.recipe)
    published = (summary.get("model") or {}).get("repo_id")
    rises = not twin.rises or (before is not None and after is not None and after > before)
    return {
        "name": twin.recipe,
        "state": state,
        "stages": stages,
        "took_s": took,
        "metric": metric,
        "before": before,
        "after": after,
        "published": published,
        "as_expected": state == "success" and published is not None and rises,
        "failed": _failures(stack, twin.recipe) if state != "success" else {},
    }


def _spoil(stack: LocalStack, bad: BadInput) -> None:
    """Write the recipe of a bad input."""
    twin = BY_NAME[bad.recipe]
    content = twin.content(bad.data(stack.site) if bad.rows is not None else twin.data(stack.site))
    bad.spoil(content, stack.site)
    (stack.site.include / "recipes" / f"bad_{bad.name}.yaml").write_text(yaml.safe_dump(content))


def _refuse(stack: LocalStack, bad: BadInput) -> dict[str, Any]:
    BY_NAME[bad.recipe].write_data(stack.site)
    if bad.rows is not None:
        bad.data(stack.site).write_bytes(bad.rows)
    began = time.monotonic()
    run = f"bad-{bad.name}"
    conf = {"recipe": f"bad_{bad.name}", "cluster": stack.site.name, **bad.form}
    stack.run(DAG, run, TIMEOUT_SECONDS, **conf)
    took = round(time.monotonic() - began, 1)
    failed = _failures(stack, run)
    stage = next(iter(failed), None)
    text = failed.get(stage or "", "")
    return {
        "name": bad.name,
        "how": bad.how,
        "stage": stage,
        "found": text,
        "took_s": took,
        "as_expected": stage in ("check", "prepare.run") and all(part in text for part in bad.says),
    }


def _failures(stack: LocalStack, run: str) -> dict[str, str]:
    """Return the tasks of a run that failed, and why: what the job left as its reason, else the errors of the log."""
    found = {}
    for task, state in stack.states(DAG, run).items():
        if state == "failed" and task != "summary":
            stage = stack.site.workspace / DAG / run / task.partition(".")[0]
            reasons = sorted(stage.glob(f"attempt-*/{attempt_dir.REASON}"))
            errors = [text for line in stack.log(DAG, run, task).splitlines() for text in _errors(line)]
            found[task] = json.loads(reasons[-1].read_text())["reason"] if reasons else "\n".join(errors)
    return found


def _errors(line: str) -> list[str]:
    """Return what one line of a task's log says of an error: its text, or those of its exceptions."""
    try:
        row = json.loads(line)
    except ValueError:
        return []
    details = [str(detail.get("exc_value")) for detail in row.get("error_detail") or []]
    return details or ([str(row.get("event"))] if row.get("level") == "error" else [])
