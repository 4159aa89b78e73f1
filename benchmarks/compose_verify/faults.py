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

# Both triggerers die, one after the other: one of them has the job in its care.
PLAN = (("sft.train", 1), ("ppo.wait", 2))
AWAY_SECONDS = 15


@dataclass
class Faults:
    """Kills container N of each service as soon as a task waits for its job.

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
            while not self._waits(task):
                if self._over.wait(1):
                    return
            # SIGKILL: no word to the database, no time to hand anything over.
            victims = [self.stack.containers(service)[number - 1] for service in ("scheduler", "triggerer")]
            output(["docker", "kill", "--signal", "KILL", *victims])
            self.done.append({"while": task, "killed": victims})
            time.sleep(AWAY_SECONDS)
            output(["docker", "start", *victims])

    def _waits(self, task: str) -> bool:
        api = self.stack.api()
        try:
            runs = [run for run in api.unfinished(DAG) if run.startswith(RUN_PREFIX)]
            states = {t["task_id"]: t["state"] for run in runs[-1:] for t in api.tasks(DAG, run)}
        except ApiError:
            return False
        return states.get(task) == "deferred"
