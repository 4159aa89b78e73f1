"""Case of the report, and the site on which it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import testing.site
from llm_bridge.diagnosis.classes import Action
from testing.local_cluster import LocalCluster
from testing.sinks import Mails, Posts

DAG, RUN = "failures", "report"
# One retry is enough to observe retries.
RETRIES = 1


class Site(testing.site.Site):
    """Cluster of the report, with the receivers of its alerts.

    Args:
        cluster: The cluster.
        folder: Folder for ``include/``.
        mails: Received mails.
        posts: Received HTTP requests.
    """

    def __init__(self, cluster: LocalCluster, folder: Path, mails: Mails, posts: Posts) -> None:
        super().__init__(cluster, folder, hub={})
        self.mails, self.posts = mails, posts

    def stage(self, name: str) -> str:
        """Return the stage directory of a case's job."""
        return f"{self.workspace}/{RUN}/{name}"


# Returns the operator of the failing task; called with the site and the arguments of every operator.
MakesOperator = Callable[[Site, dict[str, Any]], Any]

# Consequence of each action: the task's end, and the alerts that are sent. Every failed try sends one
# (alerts.yaml of the report has `retries: true`), a job that resumes within the try does not
# (notifications/callbacks.py).
FOLLOWS: dict[Action, tuple[str, tuple[str, ...]]] = {
    Action.STOP: ("failed", ("failure",)),
    Action.CONTINUE: ("succeeded", ()),
    Action.ELSEWHERE: ("succeeded", ("retry",)),
    Action.LATER: ("failed", ("retry", "failure")),
}


@dataclass(frozen=True)
class Case:
    """One failure, and the expected reaction.

    Attributes:
        name: Name of the case.
        how: Description for the report.
        kind: Expected class of the diagnosis.
        action: Expected action after the first failure; None if there is none, because the job continues.
        evidence: Text that the evidence line must contain.
        operator: Returns the operator of the failing task.
        node: Whether the diagnosis must name a node.
        meddle: Called with the first job's trigger while that runs.
        prepare: Called before the case.
        mend: Called after the case, also after an error.
        expects: The task's end and the occasions of the alerts; None for those of ``action``.
        log: Log of a training's first attempt, below the case's stage, in which lost steps are counted.
        caused: `real` if the failure is caused, `excerpt` if a job prints the output of one.
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
        """Expected end of the task."""
        return self._follows[0]

    @property
    def alerts(self) -> tuple[str, ...]:
        """Occasions of the expected alerts, in order."""
        return self._follows[1]

    @property
    def _follows(self) -> tuple[str, tuple[str, ...]]:
        if self.expects:
            return self.expects
        assert self.action, f"case {self.name} has neither `expects` nor `action`"
        return FOLLOWS[self.action]
