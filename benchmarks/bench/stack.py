"""Sections with a real Airflow: the time between two stages, and the demo's pipeline."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench.support import FOLDER, NAME, POLL_SECONDS, Bench, Figure, Section, load, percentile
from llm_bridge.remote import attempt_dir
from testing.stack import DAG, RECIPE, LocalStack

RUNS = 2
SHORT_SECONDS = 5
TIMEOUT_SECONDS = 2400.0


class BenchStack(LocalStack):
    """Airflow beside the cluster of the benchmarks, which stays as it is."""

    def __init__(self, bench: Bench, folder: Path, *, with_hub: bool, **options: Any) -> None:
        super().__init__(folder, bench.cluster, NAME, **options)
        self._bench, self._with_hub = bench, with_hub

    def start(self) -> None:
        """Start PostgreSQL, the test Hub where it is needed, and Airflow."""
        self.postgres.start()
        if self._with_hub:
            self.start_services()
        environment = {**self.site.environment, **self.environment}
        self.airflow = self.make_airflow(self.folder / "airflow", environment)
        self.airflow.start(1200)

    def stop(self) -> None:
        """Stop what :meth:`start` started."""
        if hasattr(self, "airflow"):
            self.airflow.stop()
        self.postgres.stop()


@contextmanager
def airflow(bench: Bench, name: str, *, with_hub: bool = False, **options: Any) -> Iterator[BenchStack]:
    """Run an Airflow in the context."""
    folder = (FOLDER / name).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    stack = BenchStack(bench, folder, with_hub=with_hub, **options)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


# ---- hop


def _hops(workspace: Path, run: str) -> dict[str, list[float]]:
    """Return the seconds from each job's end to the acceptance of the next one, by the length of the first."""
    folder = workspace / "bench_jobs" / run
    jobs = []
    for directory in sorted(folder.glob("*/attempt-1")):
        outcome = json.loads((directory / attempt_dir.OUTCOME).read_text())
        started = json.loads((directory / attempt_dir.STARTED).read_text())
        jobs.append(
            (
                float(started["started"]),
                float(outcome["ended"]),
                (directory / attempt_dir.JOB_ID).stat().st_mtime,
            )
        )
    found: dict[str, list[float]] = {"short": [], "long": []}
    for (started, ended, _), (_, _, accepted) in pairwise(sorted(jobs)):
        found["short" if ended - started < SHORT_SECONDS else "long"].append(round(accepted - ended, 2))
    return found


def run_hop(bench: Bench) -> dict[str, Any]:
    """Run chains of tiny jobs and chains of empty deferrable tasks."""
    found: dict[str, Any] = {"short": [], "long": [], "airflow": [], "load": []}
    dags = Path(__file__).with_name("dags")
    with airflow(bench, "hop", dags=dags, environment={}, poll_seconds=POLL_SECONDS, mem="100M") as stack:
        for dag in ("bench_jobs", "bench_nothing"):
            stack.api.wait_for_dag(dag, 600)
            stack.api.unpause(dag)
        for number in range(RUNS):
            for dag in ("bench_jobs", "bench_nothing"):
                state = stack.run(dag, f"r{number}", 1200)
                assert state == "success", f"run of {dag}: {state}"
            for kind, values in _hops(stack.site.workspace, f"r{number}").items():
                found[kind] += values
            waits = [
                stack.api.xcom("bench_nothing", f"r{number}", task["task_id"], "times")
                for task in sorted(
                    stack.api.tasks("bench_nothing", f"r{number}"), key=lambda one: one["task_id"]
                )
            ]
            found["airflow"] += [round(began - moment, 2) for (_, moment), (began, _) in pairwise(waits)]
            found["load"].append(load())
    return found


def hop_figures(found: dict[str, Any]) -> list[Figure]:
    """Return p95 of the hops; Airflow's own share is the peer."""
    empty = percentile(found["airflow"], 0.95)
    rows = []
    for kind, what, goal in (("long", "8 s", 5), ("short", "1 s", 6)):
        values = found[kind]
        rows.append(
            Figure(
                f"job of {what} ends → next sbatch accepted, p95 of {len(values)}, s",
                percentile(values, 0.95),
                goal,
                {"Airflow alone": empty},
                note="Hop: Airflow alone is a chain of deferrable tasks that do nothing, from the moment for which the "
                "trigger waits to the next task's first line",
            )
        )
    return rows


HOP = Section("hop", "Between stages", run_hop, hop_figures)


# ---- pipeline


def _busy() -> float:
    """Return the CPU seconds of this machine since its start, of all programs."""
    times = psutil.cpu_times()
    return float(
        sum(times) - times.idle - times.iowait - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    )


def _union(spans: list[tuple[float, float]]) -> float:
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _ray_to_driver_s(run: Path) -> float:
    """Return the seconds from the moment at which Ray was ready to the start of PPO's driver."""
    (ready,) = run.glob(f"*/attempt-1/{attempt_dir.CLUSTER}")
    (outcome,) = run.glob(f"*/ray-1/{attempt_dir.OUTCOME}")
    return float(json.loads(outcome.read_text())["started"]) - ready.stat().st_mtime


def _empty_job_s(bench: Bench, jobs: int) -> float:
    """Return the seconds that a shell driver spends for each job: a chain of empty ones with ``sbatch --wait``."""
    line = f"for i in $(seq {jobs}); do sbatch --wait --quiet --mem=10M --output=/dev/null --wrap true; done"
    begin = time.monotonic()
    done = bench.cluster.run("login", ["bash", "-c", line], user="svc", timeout=1200)
    assert done.returncode == 0, done.stderr
    return (time.monotonic() - begin) / jobs


def _demo_run(stack: BenchStack, run_id: str, allocation: str) -> dict[str, Any]:
    """Run the demo's recipe; return the seconds of the run, of its jobs together, and of Ray's wait for a driver."""
    conf = {"recipe": RECIPE, "cluster": NAME, "run_name": run_id, "allocation": allocation}
    state = stack.run(DAG, run_id, TIMEOUT_SECONDS, **conf)
    assert state == "success", stack.states(DAG, run_id)
    run = stack.api.ask("GET", f"/api/v2/dags/{DAG}/dagRuns/{run_id}")
    folder, spans = stack.site.workspace / DAG / run_id, []
    for outcome in folder.glob(f"*/*/{attempt_dir.OUTCOME}"):
        started = outcome.with_name(attempt_dir.STARTED)
        if started.exists():
            first = float(json.loads(started.read_text())["started"])
            spans.append((first, float(json.loads(outcome.read_text())["ended"])))
    start, end = (
        datetime.fromisoformat(run[key].replace("Z", "+00:00")).timestamp()
        for key in ("start_date", "end_date")
    )
    return {
        "run_s": round(end - start, 1),
        "jobs": len(spans),
        "jobs_s": round(_union(spans), 1),
        "ray_to_driver_s": round(_ray_to_driver_s(folder), 1),
    }


def run_pipeline(bench: Bench) -> dict[str, Any]:
    """Run the demo's recipe with a job for each stage, and with one for SFT and PPO."""
    with airflow(bench, "pipeline", with_hub=True) as stack:
        stack.ready(DAG)
        busy, began = _busy(), time.monotonic()
        runs = {
            allocation: _demo_run(stack, allocation, allocation) for allocation in ("per_stage", "shared")
        }
        used, took = _busy() - busy, time.monotonic() - began
    return {
        **runs,
        "empty_job_s": round(_empty_job_s(bench, 3), 2),
        "cpu_s_of_the_machine": round(used, 1),
        "measured_s": round(took, 1),
        "load": load(),
    }


def pipeline_figures(found: dict[str, Any]) -> list[Figure]:
    """Return the runs' time in relation to a shell driver's."""
    one, empty = found["per_stage"], found["empty_job_s"]
    note = (
        f"Pipeline: the demo's {one['jobs']} jobs run {one['jobs_s']} s, in {one['ray_to_driver_s']} of which Ray "
        f"waits for a driver; a shell driver's time is the rest and {empty} s a job, measured with empty jobs and "
        "sbatch --wait. The ten-minute figure is the same absolute difference on 600 s. Both runs together used "
        f"{found['cpu_s_of_the_machine']} CPU s of the machine, also for other programs"
    )
    rows = []
    for allocation, what in (("per_stage", "a job for each stage"), ("shared", "one for SFT and PPO")):
        run = found[allocation]
        took, driver = run["run_s"], run["jobs_s"] - run["ray_to_driver_s"] + empty * run["jobs"]
        rows += [
            Figure(f"demo's run, {what}, s", took, None, {"shell driver": round(driver, 1)}),
            Figure(f"demo's run, {what} : shell driver", round(took / driver, 3), 1.10),
            Figure(f"ten minutes of work, {what} : shell driver", round(1 + (took - driver) / 600, 3), 1.02),
        ]
    return [*rows, Figure("Ray ready → PPO's driver runs, s", one["ray_to_driver_s"], 3, note=note)]


PIPELINE = Section("pipeline", "Whole pipeline", run_pipeline, pipeline_figures)
