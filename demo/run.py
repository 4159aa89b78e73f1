"""One run of the whole pipeline, from an empty machine to an answer of the published model."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import paths, report, show
from demo.failures import Failure, first_failure
from demo.services import LOGS, Demo, DemoError, seconds_since
from demo.stages import Row, Stages
from testing.airflow_api import ApiError
from testing.hub import make_assets, publish_assets
from testing.paths import airflow_python, cluster_python
from testing.processes import MemoryWatch
from testing.programs import run_program
from testing.stack import CLUSTER, DAG, RECIPE, RUN_PREFIX, Stack

TIMEOUT = 30 * 60


@dataclass
class Outcome:
    """State of the demo run, from which report.json is made in any case.

    Attributes:
        rows: Row of each stage, as in report.json.
        model: The model of the run's summary; None without a model.
        failure: The first failed task.
        error: Any other error.
        more: Further keys of report.json.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] | None = None
    failure: Failure | None = None
    error: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def bring_up(demo: Demo, console: Console) -> None:
    """Start cluster, Hub and Airflow, and publish model and data; skip what is up and healthy."""
    paths.DEMO.mkdir(parents=True, exist_ok=True)
    # Airflow takes longest to start, and needs neither the cluster nor the data until a run starts.
    airflow = Background(demo.airflow.start)
    begin = time.monotonic()
    started = demo.start_cluster()
    _print(
        console,
        "cluster",
        f"{'4 nodes' if started else 'was already up'}, {demo.cluster.status().ssh}",
        begin,
    )
    begin = time.monotonic()
    made = make_assets(paths.ASSETS, LOGS)
    publish_assets(demo.hub, paths.ASSETS, LOGS)
    _print(
        console, "Hub", f"{demo.hub.url}, model and data {'generated and ' if made else ''}uploaded", begin
    )
    started = airflow.result()
    _print(console, "Airflow", f"{demo.airflow.url}{'' if started else ', was already up'}", airflow.begin)


class Background:
    """Call of a function in its own thread; `result` waits for it, and raises its exception."""

    def __init__(self, call: Any) -> None:
        self.begin = time.monotonic()
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """Wait for the function and return its result."""
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)  # in steps, so that Ctrl-C takes effect
        if self._error:
            raise self._error
        return self._result


def run_demo(demo: Demo, console: Console) -> int:
    """Run the demo, write report.json in any case, and return the exit code."""
    begin = time.monotonic()
    outcome = Outcome()
    watch = MemoryWatch(demo.pids)
    watch.start()
    try:
        bring_up(demo, console)
        train(demo, console, outcome)
        if outcome.failure is None:
            check_model(demo, outcome)
    except KeyboardInterrupt:
        outcome.error = "stopped by Ctrl-C"
        raise
    except Exception as error:
        # __main__ prints the project's own errors; the report has every error.
        outcome.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        wall_s = time.monotonic() - begin
        facts = report.build(
            outcome.rows,
            outcome.model,
            wall_s,
            failure=outcome.failure,
            error=outcome.error,
            peak_bytes=watch.stop(),
            **outcome.more,
        )
        report.write(paths.REPORT, facts)
    summarise(demo, console, outcome, facts)
    verified = bool(outcome.model and outcome.model["verified"])
    return 0 if verified and outcome.failure is None else 1


def train(demo: Stack, console: Console, outcome: Outcome) -> None:
    """Trigger the DAG and show it until it ends, on this machine or in containers (demo/composed.py)."""
    api = demo.api
    api.wait_for_dag(DAG)
    api.unpause(DAG)
    if earlier := demo.end_runs():
        console.print(f"ended    {', '.join(earlier)}: left running by an earlier demo", highlight=False)
    name = f"{RUN_PREFIX}{datetime.now():%Y%m%d-%H%M%S}"
    api.trigger(DAG, {"recipe": RECIPE, "cluster": CLUSTER, "run_name": name}, name)
    outcome.more |= {"run_id": name, "airflow": demo.airflow.url}

    def logs(task_id: str) -> list[Path]:
        files: list[Path] = demo.airflow.task_logs(DAG, name, task_id)
        return files

    stages = Stages(api, DAG, name, logs)
    rows: list[Row] = []
    try:
        state, rows = show.follow(stages, console, TIMEOUT, f"{DAG}, run {name}")
    finally:
        try:
            rows = rows or stages.look()
            summary = api.xcom(DAG, name, "summary", "summary")
        except ApiError:
            summary = None
        outcome.rows = report.final_rows(rows, summary)
    if evaluation := (summary or {}).get("evaluation"):
        models = evaluation["models"]
        outcome.more["scores"] = {n: models[n]["score"] for n in ("base", "sft", "rl") if n in models}
    if state == "failed":
        outcome.failure = first_failure(stages.tasks, logs) or Failure("the run", None, [])
    else:
        outcome.model = {"verified": False, "files": [], **((summary or {}).get("model") or {})}


def check_model(demo: Demo, outcome: Outcome) -> None:
    """Download the model with an unmodified Hub client, compare it with the cluster's files, and ask it a question.

    Raises:
        DemoError: The run made no model.
        ProgramError: The model cannot be downloaded or loaded.
    """
    if not outcome.model or not outcome.model.get("repo_id"):
        raise DemoError("the run succeeded, but its summary has no model: see the log of task upload.run")
    repo_id, revision = outcome.model["repo_id"], outcome.model["revision"]
    target = paths.DEMO / "model"
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(demo.hub.client_cache, ignore_errors=True)  # so that the download comes from the Hub
    argv: list[Any] = [
        airflow_python(),
        "-m",
        "testing.hub_client",
        "verify",
        repo_id,
        revision,
        target,
    ]
    files = json.loads(run_program(argv, "download the model", LOGS, demo.hub.client_environment()))
    compare(outcome.model, files)
    argv = [cluster_python(), "demo/generate.py", repo_id, revision, paths.ASSETS / "gsm8k-tiny"]
    outcome.more["answer"] = json.loads(
        run_program(argv, "ask the model", LOGS, demo.hub.client_environment(OMP_NUM_THREADS="1"))
    )


def compare(model: dict[str, Any], files: list[dict[str, Any]]) -> None:
    """Compare the downloaded files of a model with the Hub's listing and with the cluster's files.

    Args:
        model: The model of the run's summary; gets `files`, `verified` and, if files are missing, `missing`.
        files: Result of testing.hub_client's `verify`.
    """
    on_cluster = {file["path"]: file["sha256"] for file in model["files"]}
    for file in files:
        file["matches"] = file["matches"] and on_cluster.get(file["path"], file["sha256"]) == file["sha256"]
    missing = sorted(set(on_cluster) - {file["path"] for file in files})
    model["files"] = files
    model["verified"] = bool(files) and not missing and all(file["matches"] for file in files)
    if missing:
        model["missing"] = missing


def summarise(demo: Demo, console: Console, outcome: Outcome, facts: dict[str, Any]) -> None:
    """Print the summary of the demo."""
    rows = [Row(**row) for row in facts["stages"]]
    console.print()
    console.print(report.table(rows, f"run {facts.get('run_id', '')}", with_log=False))
    if outcome.failure:
        console.print(outcome.failure.text(), markup=False, highlight=False, style="red")
    if outcome.model and outcome.model.get("repo_id"):
        print_model(console, outcome)
    memory = f", peak memory {facts['peak_memory_gib']} GiB" if "peak_memory_gib" in facts else ""
    lines = [
        f"took     {facts['wall_s']:.0f} s{memory}",
        f"report   {paths.REPORT}",
        f"Airflow  {demo.airflow.url}   user admin, password {demo.airflow.password}",
        f"Hub      {demo.hub.url}",
        "`make down` stops everything",
    ]
    console.print("\n".join(lines), markup=False, highlight=False)


def print_model(console: Console, outcome: Outcome) -> None:
    """Print the published model, the comparison of its files, and its answer."""
    model = outcome.model or {}
    verdict = "all files equal the cluster's" if model["verified"] else "FILES DIFFER"
    lines = [f"model    {model['repo_id']} at {model['revision'][:12]}, downloaded: {verdict}"]
    for file in model["files"]:
        mark = "" if file["matches"] else "   DIFFERS"
        lines.append(f"  {file['path']:<28} {file['size']:>9} bytes  sha256 {file['sha256'][:16]}…{mark}")
    lines += [f"  {path:<28} MISSING on the Hub" for path in model.get("missing", [])]
    if scores := outcome.more.get("scores"):
        lines.append("scores   " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
    if answer := outcome.more.get("answer"):
        lines += [
            f"question {answer['question']}",
            f"answer   {' '.join(answer['answer'].split()) or '(empty)'}",
            "         (100,000 parameters, trained for seconds: a nonsensical answer is expected)",
        ]
    console.print("\n".join(lines), markup=False, highlight=False)


def _print(console: Console, part: str, text: str, begin: float) -> None:
    console.print(f"{part:<9}{text} ({seconds_since(begin)})", markup=False, highlight=False)
