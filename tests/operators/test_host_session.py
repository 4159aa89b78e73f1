"""Tasks in processes of their own, as Airflow runs them, share one SSH connection to the login node."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import SyncToAsync

from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.session_protocol import LOG_NAME
from llm_bridge.triggers.reachability import ClusterReachableTrigger
from testing.task_context import Task
from testing.waiting import until

TASKS, AT_ONCE = 24, 8
SCRIPT = "#!/bin/bash\n#SBATCH --begin=now+3600\ntrue\n"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files: no session process of another test is in use."""
    made = Path(tempfile.mkdtemp(prefix="lb"))
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


def session_pids(folder: Path) -> list[int]:
    """Session processes that were started, the newest last."""
    text = "".join(file.read_text() for file in folder.glob(f"*/{LOG_NAME}"))
    return [int(pid) for pid in re.findall(r"session process (\d+): started", text)]


def logins(slurm: Any) -> int:
    log = (slurm.settings.log_dir / "login" / "sshd.out").read_text(errors="replace")
    return int(log.count("Accepted publickey for svc"))


class Tasks:
    """Tasks whose steps run in forked processes, like those of LocalExecutor, some at once.

    Args:
        run: Id of their run.
    """

    def __init__(self, run: str) -> None:
        self.run_id = run
        self.stores: dict[int, dict[str, Any]] = {n: {} for n in range(TASKS)}
        self.waits = 0

    def submit(self) -> None:
        """Execute all tasks until each of them waits for its job; a cluster that is unavailable is waited for here."""
        steps: dict[int, tuple[str, Any]] = {n: ("execute", None) for n in range(TASKS)}
        while steps:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                begun = {n: pool.submit(in_process, self._step, n, *step) for n, step in steps.items()}
                outcomes = {number: future.result() for number, future in begun.items()}
            steps = {}
            for number, (trigger, method, store) in outcomes.items():
                self.stores[number] = store
                if isinstance(trigger, ClusterReachableTrigger):
                    self.waits += 1
                    steps[number] = (method, in_process(first_event, trigger))

    def _step(self, number: int, method: str, event: Any) -> Any:
        """Return trigger and method of the task's deferral, and its store."""
        from airflow.sdk.exceptions import TaskDeferred

        task = Task(f"t{number}", run_id=self.run_id)
        task.store.update(self.stores[number])
        operator = SlurmSubmitOperator(task_id=f"t{number}", cluster="test", script=SCRIPT)
        try:
            return getattr(operator, method)(task.context, *([] if event is None else [event]))
        except TaskDeferred as deferred:
            return deferred.trigger, deferred.method_name, dict(task.store)


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of work in a forked process; this one uses no event loop, whose threads no child would have."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        # asgiref's thread, which tests before this one may have started, is in no child either.
        SyncToAsync.single_thread_executor = ThreadPoolExecutor(1)
        theirs.send(work(*arguments))

    process = context.Process(target=run)
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def first_event(trigger: ClusterReachableTrigger) -> Any:
    async def first() -> Any:
        return (await anext(trigger.run())).payload

    return asyncio.run(first())


@pytest.fixture
def submitted(slurm: Any) -> Iterator[Callable[[str], tuple[list[str], list[str]]]]:
    """Return the ids of a run's jobs: as Slurm has them, by their names, and as its attempts have recorded them."""
    names: set[str] = set()

    def find(run: str) -> tuple[list[str], list[str]]:
        attempts = [path.parent for path in recorded(slurm, run)]
        names.update(json.loads((attempt / attempt_dir.OWNER).read_text())["key"] for attempt in attempts)
        done = slurm.run("login", ["squeue", "-h", "-t", "all", "-o", "%i %j"], user="svc")
        rows = [line.split() for line in done.stdout.splitlines()]
        ids = [(attempt / "job_id").read_text().strip() for attempt in attempts]
        return sorted(row[0] for row in rows if row[1] in names), sorted(ids)

    yield find
    slurm.run("ctl", ["scancel", "--user=svc"])


def recorded(slurm: Any, run: str) -> list[Path]:
    """Files with the ids of a run's jobs."""
    return list(Path(slurm.workspace, "tests", run).glob("*/attempt-*/job_id"))


def test_processes_of_tasks_make_one_login(slurm: Any, submitted: Any, folder: Path) -> None:
    before, tasks = logins(slurm), Tasks("shared-login")
    tasks.submit()
    found, ids = submitted("shared-login")
    assert len(found) == TASKS and found == ids
    assert (logins(slurm) - before, len(session_pids(folder)), tasks.waits) == (1, 1, 0)


def test_a_session_process_that_is_killed_amid_submissions_loses_and_doubles_no_job(
    slurm: Any, submitted: Any, folder: Path
) -> None:
    tasks, killed, over = Tasks("shared-killed"), [], threading.Event()

    def kill(wanted: Callable[[], bool]) -> None:
        until(lambda: over.is_set() or wanted())
        if not over.is_set():
            killed.append(session_pids(folder)[-1])
            os.kill(killed[-1], signal.SIGKILL)

    def kill_twice() -> None:
        kill(lambda: bool(recorded(slurm, "shared-killed")))
        kill(lambda: len(session_pids(folder)) > 1 and len(recorded(slurm, "shared-killed")) > TASKS / 2)

    killing = threading.Thread(target=kill_twice)
    killing.start()
    try:
        tasks.submit()
    finally:
        over.set()
        killing.join()
    found, ids = submitted("shared-killed")
    assert len(found) == TASKS and found == ids
    assert killed and len(session_pids(folder)) > 1
    print(f"killed {len(killed)} session processes; {tasks.waits} of {TASKS} tasks had to wait and try again")
