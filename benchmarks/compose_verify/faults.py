"""Chaos: while the demo run goes on, what sees to its jobs is killed piece by piece, and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compose_verify.command import VerifyError, output
from benchmarks.compose_verify.stack import Stack
from demo.airflow_api import ApiError
from demo.services import DAG, RUN_PREFIX

AWAY_SECONDS = 15
# A worker is killed while it runs this task: before or after its job was submitted, that is chance.
WORKER_TASK = "prepare.run"
ROLES = "/opt/llm-bridge/local_cluster/roles"


@dataclass(frozen=True)
class Fault:
    """What is killed, and when.

    Attributes:
        kind: a method of `Faults`.
        task: it happens while this task ...
        state: ... is in this state ...
        shown: ... and its log has so many lines of its job's output.
        number: which of the schedulers it is.
    """

    kind: str
    task: str
    state: str = "deferred"
    shown: int = 0
    number: int = 0


PLAN = (
    Fault("worker", WORKER_TASK, state="running"),
    Fault("scheduler_and_triggerer", "sft.train", shown=20, number=0),
    Fault("slurmctld", "sft.merge"),
    Fault("login", "ppo.ray_up"),
    Fault("scheduler_and_triggerer", "ppo.wait", shown=200, number=1),
    Fault("database", "merge.run"),
)


@dataclass
class Faults:
    """Injects each fault of the plan as soon as its task is where the fault wants it.

    Attributes:
        done: what was killed when.
        failed: faults that could not be injected or mended.
    """

    stack: Stack
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """No more faults; what was killed has been started again when this returns."""
        self._over.set()
        self._thread.join(timeout=120)

    @property
    def complete(self) -> bool:
        """Whether all of the plan has happened."""
        return len(self.done) == len(PLAN) and not self.failed

    def _run(self) -> None:
        for fault in PLAN:
            while not (task := self._reached(fault)):
                if self._over.wait(0.3):
                    return
            kill: Callable[[Fault, dict[str, Any]], AbstractContextManager[list[str]]]
            kill = getattr(self, f"_{fault.kind}")
            try:
                with kill(fault, task) as victims:
                    at = time.strftime("%H:%M:%S")
                    self.done.append({"while": f"{fault.task} {fault.state}", "killed": victims, "at": at})
            except Exception as error:  # told in the report: it would say less than it seems to
                self.failed.append(f"{fault.kind} during {fault.task}: {error}")

    def _reached(self, fault: Fault) -> dict[str, Any] | None:
        """The task instance, if it is where the fault wants it."""
        try:
            api = self.stack.api()
            runs = [run for run in api.unfinished(DAG) if run.startswith(RUN_PREFIX)]
            for found in api.tasks(DAG, runs[-1]) if runs else []:
                if found["task_id"] == fault.task and found["state"] == fault.state:
                    shown = fault.shown and self.stack.lines_shown(DAG, runs[-1], fault.task)
                    return found if shown >= fault.shown and _held_by(found) else None
        except (ApiError, VerifyError):
            pass  # busy, or just being restarted; it is asked again
        return None

    # ---- kinds: SIGKILL, so no word to the database, and no time to hand anything over

    @contextmanager
    def _scheduler_and_triggerer(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        victims = [self.stack.containers("scheduler")[fault.number], _held_by(task)]
        with self._without(*victims):
            yield victims

    @contextmanager
    def _worker(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        with self._without(_held_by(task)):
            run = task["dag_run_id"]
            now = next(t for t in self.stack.api().tasks(DAG, run) if t["task_id"] == fault.task)
            # Else it has ended or was deferred in the last moment, and nothing of it died with the worker.
            if now["state"] != "running":
                raise VerifyError(f"{fault.task} was {now['state']} when its worker was killed")
            yield [_held_by(task)]

    @contextmanager
    def _slurmctld(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        # The daemon alone: MariaDB of the demo's cluster is not made to survive a power cut.
        self.stack.inside("ctl", f"{ROLES}/controller", "kill", "slurmctld")
        yield ["slurmctld"]
        time.sleep(AWAY_SECONDS)
        self.stack.inside("ctl", f"{ROLES}/controller", "start", "slurmctld")

    @contextmanager
    def _login(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        victims = self.stack.containers("login")
        with self._without(*victims):
            yield victims

    @contextmanager
    def _database(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        victims = self.stack.containers("database")
        with self._without(*victims, seconds=0):
            yield victims

    @contextmanager
    def _without(self, *containers: str, seconds: float = AWAY_SECONDS) -> Iterator[None]:
        output(["docker", "kill", "--signal", "KILL", *containers])
        try:
            yield
            time.sleep(seconds)
        finally:
            output(["docker", "start", *containers])


def _held_by(task: dict[str, Any]) -> str:
    """The container that has a task in its care, empty if none has: containers' host names are their ids."""
    if task["state"] == "running":
        return str(task["hostname"] or "")
    return str((task.get("triggerer_job") or {}).get("hostname") or "")
