"""Section about submissions: 100 tasks at once, as Airflow runs operators, and through the library in one process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.bench.support import NAME, PEER_CONNECTION, Bench, Figure, Section, difference, load

JOBS = 100
# Airflow's default parallelism: so many tasks run at once.
SLOTS = 32
# Jobs that wait: what they would do is not measured. The peer's jobs have the same options.
BEGIN = "#SBATCH --begin=now+3600 --mem=100M --time=60"
SCRIPT = f"#!/bin/bash\n{BEGIN}\ntrue\n"
TIMEOUT_SECONDS = 420
IMPORTED = (
    "airflow.providers.ssh.hooks.ssh",
    "benchmarks.bench.watchers.ours",
    "llm_bridge.operators.slurm",
    "llm_bridge.remote.ssh_transport",
    "testing.task_context",
)


def _rate(jobs: int, seconds: float) -> dict[str, Any]:
    return {
        "jobs": jobs,
        "seconds": round(seconds, 2),
        "per_second": round(jobs / seconds, 2) if jobs else 0.0,
    }


def _measured(bench: Bench, work: Any) -> dict[str, Any]:
    bench.site.end_jobs()
    before, begin = bench.counters(), time.monotonic()
    found = work(begin)
    counted = difference(bench.counters(), before)
    bench.site.end_jobs()
    return {
        **found,
        "connections": counted.get("connections", 0),
        "refused_connections": counted.get("refused", 0),
        "refused_sessions": counted.get("no_session", 0),
        "load": load(),
    }


# ---- llm-bridge, the library


def _library(bench: Bench, begin: float) -> dict[str, Any]:
    """Submit all jobs from one event loop, as one process with one session does."""
    from benchmarks.bench.watchers.ours import submission
    from llm_bridge.slurm.client import open_client

    run = bench.new_folder("library").name
    failed: list[str] = []
    done: list[float] = []

    async def one(number: int) -> None:
        try:
            await submission(bench.site.name, str(bench.site.workspace), run, number, SCRIPT).submit()
            done.append(time.monotonic())
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:300])

    async def all_jobs() -> None:
        async with open_client(bench.site.name):  # one connection for all
            await asyncio.gather(*(one(number) for number in range(JOBS)))

    asyncio.run(all_jobs())
    last = max(done, default=time.monotonic())
    return {**_rate(len(done), last - begin), "failed": len(failed), "errors": failed[:3]}


# ---- llm-bridge, operators


def _work(
    pipe: Connection, run: str, number: int, store: dict[str, Any], step: tuple[str, Any] | None
) -> None:
    """Run in a forked process like a task of LocalExecutor: execute or resume the operator, send what followed."""
    from airflow.sdk.exceptions import TaskDeferred

    from llm_bridge.operators.slurm import SlurmSubmitOperator
    from testing.task_context import Task

    logging.disable(logging.CRITICAL)
    task = Task(f"job{number}", dag_id="bench", run_id=run)
    task.store.update(store)
    operator = SlurmSubmitOperator(task_id=f"job{number}", cluster=NAME, script=SCRIPT)
    try:
        if step is None:
            operator.execute(task.context)
        else:
            getattr(operator, step[0])(task.context, step[1])
        pipe.send(("ended", "", {}, "", dict(task.store)))
    except TaskDeferred as deferred:
        path, arguments = deferred.trigger.serialize()
        pipe.send(("deferred", path, arguments, deferred.method_name, dict(task.store)))
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"[:300], {}, "", dict(task.store)))


def _forked(run: str, number: int, store: dict[str, Any], step: tuple[str, Any] | None) -> Any:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, run, number, store, step))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return ("failed", "the task's process has ended", {}, "", store)
    finally:
        process.join()


def _operators(bench: Bench, begin: float) -> dict[str, Any]:
    """Execute 100 operators, 32 at once in processes of their own; run their triggers here, as a triggerer does."""
    import llm_bridge.operators.slurm
    import llm_bridge.triggers.slurm  # noqa: F401

    run = bench.new_folder("operators").name
    pool, failed = ThreadPoolExecutor(SLOTS), []

    async def trigger_event(path: str, arguments: dict[str, Any]) -> Any:
        module, _, name = path.rpartition(".")
        trigger = getattr(importlib.import_module(module), name)(**arguments)
        trigger.task_instance = SimpleNamespace(
            dag_id="bench", run_id=run, task_id="job", map_index=-1, try_number=1, id="0", max_tries=2
        )
        return (await anext(trigger.run())).payload

    async def one(number: int) -> None:
        store: dict[str, Any] = {}
        step: tuple[str, Any] | None = None
        while True:
            kind, path, arguments, method, store = await asyncio.get_running_loop().run_in_executor(
                pool, _forked, run, number, store, step
            )
            if kind == "failed":
                failed.append(path)
            if kind != "deferred" or arguments.get("job_id"):
                return
            step = (method, await trigger_event(path, arguments))

    async def all_tasks() -> list[float]:
        tasks = [asyncio.create_task(one(number)) for number in range(JOBS)]
        folder = Path(bench.site.workspace) / "bench" / run
        seen: list[Path] = []
        while len(seen) + len(failed) < JOBS and time.monotonic() - begin < TIMEOUT_SECONDS:
            await asyncio.sleep(0.1)
            seen = list(folder.glob("*/attempt-*/job_id"))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return sorted(path.stat().st_mtime for path in seen)

    wall = time.time()
    times = asyncio.run(all_tasks())
    pool.shutdown(cancel_futures=True)
    return {
        **_rate(len(times), times[-1] - wall if times else 1.0),
        "failed": len(failed),
        "errors": failed[:3],
    }


# ---- the peer


def _peer(bench: Bench, begin: float) -> dict[str, Any]:
    """Submit with SSHOperator's hook: a connection each, 32 at once."""
    from airflow.providers.ssh.hooks.ssh import SSHHook

    folder = bench.new_folder("peer")
    (folder / "job").write_text(SCRIPT)
    failed: list[str] = []
    done: list[float] = []

    def one(number: int) -> None:
        try:
            hook = SSHHook(ssh_conn_id=PEER_CONNECTION)
            with hook.get_conn() as client:
                line = f"sbatch --parsable --output=/dev/null {folder}/job"
                code, _, err = hook.exec_ssh_client_command(
                    client, line, get_pty=False, environment=None, timeout=60
                )
            assert code == 0, err
            done.append(time.monotonic())
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:300])

    with ThreadPoolExecutor(SLOTS) as pool, contextlib.suppress(json.JSONDecodeError):
        list(pool.map(one, range(JOBS)))
    last = max(done, default=time.monotonic())
    return {**_rate(len(done), last - begin), "failed": len(failed), "errors": failed[:3]}


def run(bench: Bench) -> dict[str, Any]:
    """Submit 100 jobs each way."""
    # Not measured, and there before processes are forked, as in Airflow's workers.
    for module in IMPORTED:
        importlib.import_module(module)
    for name, level in (("paramiko", logging.CRITICAL), ("llm_bridge", logging.WARNING)):
        logging.getLogger(name).setLevel(level)
    return {
        "operators": _measured(bench, lambda begin: _operators(bench, begin)),
        "library": _measured(bench, lambda begin: _library(bench, begin)),
        "SSHOperator": _measured(bench, lambda begin: _peer(bench, begin)),
    }


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return submissions a second, and what was refused."""
    peer = found["SSHOperator"]
    rows = []
    for name, what in (("operators", f"operators, {SLOTS} tasks at once"), ("library", "one process")):
        one = found[name]
        rows.append(
            Figure(
                f"{JOBS} submissions, {what}, a second",
                one["per_second"],
                25,
                {"SSHOperator": peer["per_second"]},
                at_least=True,
            )
        )
    for key, what in (
        ("refused_connections", "connections refused (MaxStartups)"),
        ("refused_sessions", "sessions refused (MaxSessions)"),
        ("failed", "tasks failed"),
    ):
        rows.append(
            Figure(f"{what}, {JOBS} operators", found["operators"][key], 0, {"SSHOperator": peer[key]})
        )
    rows.append(
        Figure(
            f"SSH connections, {JOBS} operators",
            found["operators"]["connections"],
            None,
            {"SSHOperator": peer["connections"]},
            note="Submissions: jobs with --begin in an hour; SSHOperator's hook in threads, without start of a process",
        )
    )
    return rows


SECTION = Section("submit", "Submitting", run, figures)
