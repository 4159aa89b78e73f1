"""One run of the whole pipeline, from an empty machine to a model on the Hub that answers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console

from demo import paths, report, show
from demo.airflow_api import ApiError
from demo.failures import Failure, first_failure
from demo.processes import MemoryWatch
from demo.services import (
    CLUSTER,
    DAG,
    RECIPE,
    RUN_PREFIX,
    Demo,
    DemoError,
    make_assets,
    run_program,
    seconds_since,
)
from demo.stages import Row, Stages

TIMEOUT = 30 * 60


@dataclass
class Outcome:
    """What is known so far; report.json is made from it however the run ends."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] | None = None
    failure: Failure | None = None
    error: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def bring_up(demo: Demo, console: Console) -> None:
    """Cluster and Hub, model and data, Airflow; what is up and healthy is used as it is."""
    paths.DEMO.mkdir(parents=True, exist_ok=True)
    # Airflow needs most of the time, and neither the cluster nor the data until a run begins.
    airflow = Background(demo.airflow.start)
    begin = time.monotonic()
    started = demo.start_cluster()
    _say(console, "cluster", f"{'4 nodes' if started else 'was up'}, {demo.cluster.status().ssh}", begin)
    begin = time.monotonic()
    made = make_assets()
    python = str(paths.airflow_python())
    run_program(
        [python, "-m", "demo.hub_client", "upload", paths.ASSETS],
        "upload model and data",
        demo.hub.client_environment(),
    )
    _say(console, "Hub", f"{demo.hub.url}, model and data {'made and ' if made else ''}uploaded", begin)
    started = airflow.result()
    _say(console, "Airflow", f"{demo.airflow.url}{'' if started else ' was up'}", airflow.begin)


class Background:
    """Calls a function in a thread of its own; `result` waits for it, and raises what it raised."""

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
        """What the function returned."""
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)  # in steps, so that Ctrl-C is heard
        if self._error:
            raise self._error
        return self._result


def run_demo(demo: Demo, console: Console) -> int:
    """All of it; returns the exit code. report.json is written however it ends."""
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
        # Said by __main__ where it is one of ours; the report has it in any case.
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


class Trains(Protocol):
    """What `train` needs: the demo on this machine, or the one in containers (demo/composed.py)."""

    @property
    def airflow(self) -> Any:
        """Has `api()`, `url` and `task_logs()` of LocalAirflow."""

    def end_runs(self) -> list[str]:
        """End what earlier demos have left going on; returns the runs' ids."""


def train(demo: Trains, console: Console, outcome: Outcome) -> None:
    """Trigger the DAG and follow it to its end."""
    api = demo.airflow.api()
    api.wait_for_dag(DAG)
    api.unpause(DAG)
    if earlier := demo.end_runs():
        console.print(
            f"ended    {', '.join(earlier)}, which an earlier demo had left going on", highlight=False
        )
    name = f"{RUN_PREFIX}{datetime.now():%Y%m%d-%H%M%S}"
    api.trigger(DAG, {"recipe": RECIPE, "cluster": CLUSTER, "run_name": name}, name)
    outcome.more |= {"run_id": name, "airflow": demo.airflow.url}

    def logs(task_id: str) -> list[Any]:
        return demo.airflow.task_logs(DAG, name, task_id)

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
    if state == "failed":
        outcome.failure = first_failure(stages.tasks, logs) or Failure("the run", None, [])
    else:
        outcome.model = {"verified": False, "files": [], **((summary or {}).get("model") or {})}


def check_model(demo: Demo, outcome: Outcome) -> None:
    """Download the model again as any client would, compare, and ask it a question.

    Raises:
        DemoError: there is no model, or it cannot be downloaded or asked.
    """
    if not outcome.model or not outcome.model.get("repo_id"):
        raise DemoError("the run succeeded, but its summary names no model: see the log of task upload.run")
    repo_id, revision = outcome.model["repo_id"], outcome.model["revision"]
    target = paths.DEMO / "model"
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(demo.hub.client_cache, ignore_errors=True)  # from the Hub, not from a cache
    argv: list[Any] = [paths.airflow_python(), "-m", "demo.hub_client", "verify", repo_id, revision, target]
    files = json.loads(run_program(argv, "download the model", demo.hub.client_environment()))
    compare(outcome.model, files)
    argv = [paths.cluster_python(), "demo/generate.py", repo_id, revision, paths.ASSETS / "gsm8k-tiny"]
    outcome.more["answer"] = json.loads(
        run_program(argv, "ask the model", demo.hub.client_environment(OMP_NUM_THREADS="1"))
    )


def compare(model: dict[str, Any], files: list[dict[str, Any]]) -> None:
    """Write down whether a model's files, as downloaded, are what the Hub says and what the cluster has sent.

    Args:
        model: as the run's summary has it; gets `files`, `verified` and, if any are, `missing`.
        files: as demo.hub_client's `verify` gives them.
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
    """The end of the demo on the screen."""
    rows = [Row(**row) for row in facts["stages"]]
    console.print()
    console.print(report.table(rows, f"run {facts.get('run_id', '')}", with_log=False))
    if outcome.failure:
        console.print(outcome.failure.text(), markup=False, highlight=False, style="red")
    if outcome.model and outcome.model.get("repo_id"):
        print_model(console, outcome)
    memory = f", {facts['peak_memory_gib']} GiB of memory at most" if "peak_memory_gib" in facts else ""
    lines = [
        f"took     {facts['wall_s']:.0f} s{memory}",
        f"report   {paths.REPORT}",
        f"Airflow  {demo.airflow.url}   user admin, password {demo.airflow.password}",
        f"Hub      {demo.hub.url}",
        "`make down` stops all of it",
    ]
    console.print("\n".join(lines), markup=False, highlight=False)


def print_model(console: Console, outcome: Outcome) -> None:
    """Say which model the Hub has, whether it is the right one, and what it answers."""
    model = outcome.model or {}
    word = "every file as the Hub and the cluster have it" if model["verified"] else "NOT AS IT SHOULD BE"
    lines = [f"model    {model['repo_id']} at {model['revision'][:12]}, downloaded again: {word}"]
    for file in model["files"]:
        mark = "" if file["matches"] else "   DIFFERS"
        lines.append(f"  {file['path']:<28} {file['size']:>9} bytes  sha256 {file['sha256'][:16]}…{mark}")
    lines += [f"  {path:<28} MISSING on the Hub" for path in model.get("missing", [])]
    if answer := outcome.more.get("answer"):
        lines += [
            f"asked    {answer['question']}",
            f"says     {' '.join(answer['answer'].split()) or '(nothing)'}",
            "         (a model of 100,000 numbers, trained for seconds: nonsense is what it should say)",
        ]
    console.print("\n".join(lines), markup=False, highlight=False)


def _say(console: Console, what: str, text: str, begin: float) -> None:
    console.print(f"{what:<9}{text} ({seconds_since(begin)})", markup=False, highlight=False)
