"""Chaos, in small: while jobs run, the scheduler and the triggerer that see to them are killed, and come back."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compose_verify.command import output
from benchmarks.compose_verify.stack import Stack
from demo.airflow_api import ApiError
from demo.services import DAG, RUN_PREFIX

# Task -> which of the schedulers dies with the triggerer that has the task in its care.
PLAN = (("sft.train", 1), ("ppo.wait", 2))
AWAY_SECONDS = 15


@dataclass
class Faults:
    """Kills a scheduler, and the triggerer that watches the job, as soon as a task waits for that.

    Attributes:
        done: what was killed when.
    """

    stack: Stack
    done: list[dict[str, Any]] = field(default_factory=list)

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

    def _run(self) -> None:
        for task, number in PLAN:
            while not (triggerer := self._watched_by(task)):
                if self._over.wait(1):
                    return
            victims = [self.stack.containers("scheduler")[number - 1], triggerer]
            # SIGKILL: no word to the database, no time to hand anything over.
            output(["docker", "kill", "--signal", "KILL", *victims])
            self.done.append({"while": task, "killed": victims})
            time.sleep(AWAY_SECONDS)
            output(["docker", "start", *victims])

    def _watched_by(self, task: str) -> str | None:
        """The container of the triggerer that has a deferred task; its host name is its id."""
        api = self.stack.api()
        try:
            runs = [run for run in api.unfinished(DAG) if run.startswith(RUN_PREFIX)]
            for found in api.tasks(DAG, runs[-1]) if runs else []:
                if found["task_id"] == task and found["state"] == "deferred":
                    return (found.get("triggerer_job") or {}).get("hostname")
        except ApiError:
            pass  # busy; it is asked again
        return None
