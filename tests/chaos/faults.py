"""Things that break and are mended again while jobs run."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator

from tests.chaos.airflow import kill, parent, title
from tests.chaos.stack import ChaosStack

# Kind -> how often it is chosen, relative to the others.
WEIGHTS = {
    "worker": 6,
    "triggerer": 4,
    "triggerer stalls": 2,
    "scheduler": 3,
    "airflow": 0.5,
    "sshd": 4,
    "ssh sessions": 3,
    "slurmctld": 4,
    "slurmdbd": 3,
    "slurmd": 2,
    "node": 2,
    "network of a node": 2,
    "network of the login node": 3,
    "network of the controller": 2,
}


class Faults:
    """Breaks one thing after the other; some while another is still broken.

    :param seed: of the choice of kinds, victims and times. What they meet depends on the machine all the same.
    """

    def __init__(self, stack: ChaosStack, seed: int) -> None:
        self.stack = stack
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []
        # What broke when, in epoch seconds.
        self.times: list[tuple[float, str]] = []
        # One pair of hands for Airflow, one for the cluster: two kinds at a time.
        self._hands = {"airflow": threading.Lock(), "cluster": threading.Lock()}

    @property
    def stalls(self) -> list[float]:
        """When triggerers were stopped."""
        return [at for at, kind in self.times if kind == "triggerer stalls"]

    def inject(self, number: int) -> None:
        """Break ``number`` things, and see that all are mended."""
        running: list[threading.Thread] = []
        kinds = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=number)
        for kind in kinds:
            thread = threading.Thread(target=self._one, args=[kind, self.random.random()])
            thread.start()
            running.append(thread)
            time.sleep(self.random.uniform(1, 6))
            while sum(t.is_alive() for t in running) > 1:
                time.sleep(0.2)
        for thread in running:
            thread.join()

    def _one(self, kind: str, choice: float) -> None:
        ours = kind.split()[0] in ("worker", "triggerer", "scheduler", "airflow")
        with self._hands["airflow" if ours else "cluster"]:
            try:
                with getattr(self, "_" + kind.replace(" ", "_"))(random.Random(choice)) as seconds:
                    self.counts[kind] += 1
                    self.times.append((round(time.time(), 1), kind))
                    time.sleep(seconds)
                if not ours:
                    self.stack.resume_nodes()
            except Exception as error:  # reported: without the fault the run proves less
                self.failed.append(f"{kind}: {error!r}")

    # ---- Airflow

    @contextlib.contextmanager
    def _worker(self, chance: random.Random) -> Iterator[float]:
        # Tasks are short here: lie in wait for one. A supervisor before its task runs is left alone: what it has
        # fetched would stay queued until the scheduler is restarted (LocalExecutor has no revoke_task).
        deadline = time.monotonic() + 20
        while not (pids := self.stack.airflow.tasks()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not pids:
            raise LookupError("no task ran")
        time.sleep(chance.uniform(0, 2.5))
        victim = chance.choice(pids)
        if chance.random() < 0.3 and "airflow supervisor" in title(parent(victim)):
            kill(parent(victim))
        kill(victim)
        yield 0.0

    @contextlib.contextmanager
    def _triggerer(self, chance: random.Random) -> Iterator[float]:
        if chance.random() < 0.7:
            self.stack.airflow.kill("triggerer")
        else:
            self.stack.airflow.signal("triggerer", signal.SIGTERM)
            self.stack.airflow.parts["triggerer"].wait(timeout=60)
        yield chance.uniform(0, 5)
        self.stack.airflow.revive("triggerer")

    @contextlib.contextmanager
    def _triggerer_stalls(self, chance: random.Random) -> Iterator[float]:
        # Longer than its heartbeat's timeout: the other triggerer takes over its triggers.
        go_on = self.stack.airflow.freeze(chance.choice(["triggerer", "second"]))
        yield chance.uniform(18, 28)
        go_on()

    @contextlib.contextmanager
    def _scheduler(self, chance: random.Random) -> Iterator[float]:
        self.stack.airflow.kill("scheduler")
        yield chance.uniform(0, 5)
        self.stack.airflow.revive("scheduler")

    @contextlib.contextmanager
    def _airflow(self, chance: random.Random) -> Iterator[float]:
        self.stack.airflow.crash()
        yield chance.uniform(0, 5)
        self.stack.airflow.start()
        self.stack.airflow.revive("second", kind="triggerer")

    # ---- the cluster

    @contextlib.contextmanager
    def _daemon(self, name: str, seconds: float, host: str | None = None) -> Iterator[float]:
        self.stack.cluster.kill(name, host)
        yield seconds
        self.stack.cluster.start(name, host)

    def _sshd(self, chance: random.Random) -> contextlib.AbstractContextManager[float]:
        self.stack.end_sessions()
        return self._daemon("sshd", chance.uniform(0, 15))

    @contextlib.contextmanager
    def _ssh_sessions(self, chance: random.Random) -> Iterator[float]:
        self.stack.end_sessions()
        yield 0.0

    def _slurmctld(self, chance: random.Random) -> contextlib.AbstractContextManager[float]:
        return self._daemon("slurmctld", chance.uniform(0, 15))

    def _slurmdbd(self, chance: random.Random) -> contextlib.AbstractContextManager[float]:
        return self._daemon("slurmdbd", chance.uniform(0, 15))

    def _slurmd(self, chance: random.Random) -> contextlib.AbstractContextManager[float]:
        return self._daemon("slurmd", chance.uniform(0, 20), self._some_node(chance))

    @contextlib.contextmanager
    def _node(self, chance: random.Random) -> Iterator[float]:
        node = self._some_node(chance)
        self.stack.cluster.power_off(node)
        yield chance.uniform(2, 30)
        self.stack.cluster.power_on(node)

    @contextlib.contextmanager
    def _cable(self, host: str, seconds: float) -> Iterator[float]:
        self.stack.cluster.cut(host)
        yield seconds
        self.stack.cluster.join(host)

    def _network_of_a_node(self, chance: random.Random) -> contextlib.AbstractContextManager[float]:
        return self._cable(self._some_node(chance), chance.uniform(2, 30))

    def _network_of_the_login_node(self, chance: random.Random) -> contextlib.AbstractContextManager[float]:
        return self._cable("login", chance.uniform(1, 20))

    def _network_of_the_controller(self, chance: random.Random) -> contextlib.AbstractContextManager[float]:
        return self._cable("ctl", chance.uniform(1, 20))

    def _some_node(self, chance: random.Random) -> str:
        return chance.choice(self.stack.cluster.settings.node_names)
