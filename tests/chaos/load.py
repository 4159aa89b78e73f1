"""Simulated users that keep triggering runs, and sometimes end or clear one, independent of faults."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from testing.airflow_api import ENDED, ApiError
from tests.chaos.stack import ChaosStack

MAX_OPEN_RUNS = 6
# What a user does to a run -> how often; None: nothing.
ACTIONS = {None: 70, "task failed": 6, "task success": 6, "task skipped": 3, "run failed": 6, "cleared": 9}


@dataclass
class Run:
    """One run and what its user has in mind."""

    dag: str
    name: str
    conf: dict[str, Any]
    action: str | None
    # When to act: so long after its start or, for most, after its job's.
    delay: float
    blind: bool
    started: float = field(default_factory=time.monotonic)
    job_seen: float = 0.0
    acted: bool = False
    state: str = ""

    @property
    def ended_by_user(self) -> bool:
        """Whether its job need not have come to its end."""
        return self.acted and self.action != "cleared"

    @property
    def cleared(self) -> bool:
        return self.acted and self.action == "cleared"


class Load:
    """:param seed: of what jobs do and what users want."""

    def __init__(self, stack: ChaosStack, seed: int) -> None:
        self.stack = stack
        self.random = random.Random(seed)
        self.runs: list[Run] = []

    def work(self, over: threading.Event, drain: float) -> None:
        """Start runs until ``over``, then wait for their ends, at most ``drain`` seconds."""
        while not over.is_set():
            open_runs = self._look()
            if len(open_runs) < MAX_OPEN_RUNS:
                self._start()
            time.sleep(0.5)
        deadline = time.monotonic() + drain
        while self._look() and time.monotonic() < deadline:
            time.sleep(1)

    def _start(self) -> None:
        chance = self.random
        action = chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        conf: dict[str, Any] = {"lines": chance.randint(1, 60), "pause": chance.choice([0.2, 0.5, 1])}
        if action == "cleared":
            conf = {"lines": 40, "pause": 1}
        elif action:
            conf = {"lines": 3000, "pause": 1}  # it does not end by itself within the hour
        requeue = chance.random() < 0.8
        # A sensor only watches: ending it would not end the job.
        dag = "sensor" if action is None and chance.random() < 0.2 else "storm"
        # Nor can it submit the job of another task again, if that one is lost with its node.
        conf["requeue"] = requeue or dag == "sensor"
        delay, blind = chance.uniform(0, 10), chance.random() < 0.4
        run = Run(dag, f"run-{len(self.runs)}", conf, action, delay, blind)
        try:
            self.stack.trigger(dag, run.name, **conf)
        except ApiError:
            # Whether Airflow has taken it is not known: it counts if it has.
            if not self._exists(run):
                return
        self.runs.append(run)

    def _exists(self, run: Run) -> bool:
        while True:
            try:
                self.stack.api.run_state(run.dag, run.name)
            except ApiError as error:
                if "404" in str(error):
                    return False
                time.sleep(1)
            else:
                return True

    def _look(self) -> list[Run]:
        """Runs that are not over, after what users do now."""
        left = []
        for run in self.runs:
            if run.state in ENDED and not (run.action and not run.acted):
                continue
            left.append(run)
            with contextlib.suppress(ApiError):
                run.state = self.stack.api.run_state(run.dag, run.name)
                if run.action and not run.acted:
                    self._act(run)
        return left

    def _act(self, run: Run) -> None:
        now = time.monotonic()
        if not run.job_seen and self.stack.ledger.began(run.name):
            run.job_seen = now
        since = run.started if run.blind else run.job_seen
        if not since or now - since < run.delay:
            return
        try:
            if run.action == "run failed":
                self.stack.api.fail(run.dag, run.name)
            elif run.action == "cleared":
                self.stack.clear(run.dag, run.name, "job")
            else:
                self.stack.mark(run.dag, run.name, str(run.action).split()[1], "job")
        except ApiError as error:
            # Refused (the task has no such state now): tried again. No answer: it may have been done.
            run.acted = run.acted or "no answer" in str(error)
            if not run.acted:
                raise
        run.acted, run.state = True, ""
