"""What a case of the report is, and the site on which it is played."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from llm_bridge.failures.kinds import Action
from local_cluster import LocalCluster
from tests.alerts.sinks import Mails, Posts

DAG, RUN = "failures", "report"
# Enough to see what a retry does.
RETRIES = 1


@dataclass(frozen=True)
class Site:
    """A cluster that is there for the report alone, and who is told.

    :param include: the folder with its cluster file.
    """

    cluster: LocalCluster
    include: Path
    mails: Mails
    posts: Posts

    @property
    def name(self) -> str:
        """Of its cluster file."""
        return self.cluster.settings.name

    @property
    def workspace(self) -> Path:
        return self.cluster.workspace

    def stage(self, name: str) -> str:
        """A directory of its own for a case's job."""
        return f"{self.workspace}/{RUN}/{name}"

    def variant(self, name: str, **changes: Any) -> str:
        """Write one more cluster file of this site, with a few values changed in it; its name."""
        folder = self.include / "clusters"
        values = yaml.safe_load((folder / f"{self.name}.yaml").read_text())
        merged = {
            key: values[key] | change if isinstance(change, dict) else change
            for key, change in changes.items()
        }
        (folder / f"{self.name}_{name}.yaml").write_text(yaml.safe_dump(values | merged))
        return f"{self.name}_{name}"

    def run(self, host: str, *argv: str, user: str | None = None) -> str:
        """Run a program that must not fail; what it prints."""
        done = self.cluster.run(host, [*argv], user=user)
        assert done.returncode == 0, f"{argv[0]} on {host}: {done.stderr or done.stdout}"
        return done.stdout

    def end_jobs(self) -> None:
        """Cancel what is left of a case, so that the next one finds all nodes free."""
        deadline = time.monotonic() + 60
        while self.cluster.run("login", ["squeue", "-h"], user="svc").stdout.strip():
            self.cluster.run("login", ["scancel", "--user=svc"], user="svc")
            assert time.monotonic() < deadline, "jobs of the last case do not end"
            time.sleep(0.3)


# Makes the operator of the task that fails, from the site and arguments that every operator is to be given.
MakesOperator = Callable[[Site, dict[str, Any]], Any]

# What follows a failure by itself: how the task ends, and which alerts are sent on the way. Everything that fails a try
# is told (alerts.yaml of the report says `retries: true`), what goes on within the try is not (alerts/occasions.py).
FOLLOWS: dict[Action, tuple[str, tuple[str, ...]]] = {
    Action.STOP: ("failed", ("failure",)),
    Action.CONTINUE: ("succeeded", ()),
    Action.ELSEWHERE: ("succeeded", ("retry",)),
    Action.LATER: ("failed", ("retry", "failure")),
}


@dataclass(frozen=True)
class Case:
    """One way to fail, and what is expected.

    :param how: for people. :param kind: the class.
    :param action: what is decided after the first failure; None where nothing is, because it goes on.
    :param evidence: a text that the evidence line holds. :param node: whether a node has to be named.
    :param meddle: called while the first job is followed, with its trigger.
    :param prepare: called before, as root of the site. :param mend: and afterwards, whatever happened.
    :param expects: how the task ends and the occasions of the alerts; None for what ``action`` says by itself.
    :param log: of a training's first attempt, below the case's stage: steps that were lost are counted in it.
    :param caused: whether the thing itself happens, or a job prints what programs print when it does.
    """

    name: str
    how: str
    kind: str
    action: Action | None
    evidence: str
    operator: MakesOperator
    node: bool = False
    meddle: Callable[[Site, Any], None] | None = None
    prepare: Callable[[Site], None] | None = None
    mend: Callable[[Site], None] | None = None
    expects: tuple[str, tuple[str, ...]] | None = None
    log: str | None = None
    caused: Literal["real", "excerpt"] = "real"

    @property
    def ends(self) -> str:
        """How the task is to end."""
        return self._follows[0]

    @property
    def told(self) -> tuple[str, ...]:
        """The occasions of the alerts that are to be sent, in order."""
        return self._follows[1]

    @property
    def _follows(self) -> tuple[str, tuple[str, ...]]:
        if self.expects:
            return self.expects
        assert self.action, f"case {self.name}: what it expects is not said"
        return FOLLOWS[self.action]
