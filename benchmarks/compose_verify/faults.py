"""Faults during the demo run: the services that handle its jobs are killed one after the other, and started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compose_verify.command import VerifyError, output
from benchmarks.compose_verify.stack import ComposeStack
from testing.airflow_api import ApiError
from testing.stack import DAG, RUN_PREFIX

# Time from kill to start.
DOWN_SECONDS = 15
# A worker is killed while it runs this task; whether the job was submitted before, is random.
WORKER_TASK = "prepare.run"
ROLES = "/opt/llm-bridge/testing/local_cluster/roles"


@dataclass(frozen=True)
class Fault:
    """One fault: the killed service, and the condition.

    Attributes:
        kind: Method of `Faults`.
        task: The fault is injected while this task ...
        state: ... is in this state ...
        shown: ... and its log has this number of lines of its job's output.
        number: Index of the killed scheduler.
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
    """Inject each fault of the plan as soon as its condition is met.

    Attributes:
        stack: The containers.
        done: Injected faults with their times.
        failed: Faults that could not be injected or undone.
    """

    stack: ComposeStack
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread that injects the faults."""
        self._thread.start()

    def stop(self) -> None:
        """Inject no more faults, and wait until every killed service was started again."""
        self._over.set()
        self._thread.join(timeout=120)

    @property
    def complete(self) -> bool:
        """True if all faults of the plan were injected and undone."""
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
            except Exception as error:  # reported: without the fault the verification is incomplete
                self.failed.append(f"{fault.kind} during {fault.task}: {error}")

    def _reached(self, fault: Fault) -> dict[str, Any] | None:
        """Return the task instance if it meets the fault's condition."""
        try:
            api = self.stack.api
            runs = [run for run in api.unfinished(DAG) if run.startswith(RUN_PREFIX)]
            for found in api.tasks(DAG, runs[-1]) if runs else []:
                if found["task_id"] == fault.task and found["state"] == fault.state:
                    shown = fault.shown and self.stack.lines_shown(DAG, runs[-1], fault.task)
                    return found if shown >= fault.shown and _held_by(found) else None
        except (ApiError, VerifyError):
            pass  # busy, or being restarted; polled again
        return None

    # ---- kinds: SIGKILL, so that no service can update the database or hand over its tasks

    @contextmanager
    def _scheduler_and_triggerer(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        victims = [self.stack.containers("scheduler")[fault.number], _held_by(task)]
        with self._without(*victims):
            yield victims

    @contextmanager
    def _worker(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        with self._without(_held_by(task)):
            run = task["dag_run_id"]
            now = next(t for t in self.stack.api.tasks(DAG, run) if t["task_id"] == fault.task)
            # Otherwise it ended or was deferred before the kill, and the fault did not affect it.
            if now["state"] != "running":
                raise VerifyError(f"{fault.task} was {now['state']} when its worker was killed")
            yield [_held_by(task)]

    @contextmanager
    def _slurmctld(self, fault: Fault, task: dict[str, Any]) -> Iterator[list[str]]:
        # Only the daemon: MariaDB of the demo's cluster is not configured to survive power loss.
        self.stack.inside("ctl", f"{ROLES}/controller", "kill", "slurmctld")
        yield ["slurmctld"]
        time.sleep(DOWN_SECONDS)
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
    def _without(self, *containers: str, seconds: float = DOWN_SECONDS) -> Iterator[None]:
        output(["docker", "kill", "--signal", "KILL", *containers])
        try:
            yield
            time.sleep(seconds)
        finally:
            output(["docker", "start", *containers])


def _held_by(task: dict[str, Any]) -> str:
    """Return the container that runs a task or its trigger, empty if none does: host names are container ids."""
    if task["state"] == "running":
        return str(task["hostname"] or "")
    return str((task.get("triggerer_job") or {}).get("hostname") or "")
