"""One quirk: what makes the local cluster odd, and what llm-bridge does there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testing.site import Site

# What is played on the odd site, in this order.
COLUMNS = ("submit", "follow", "cancel", "orphan sweep", "check")
# Outcomes: "ok", "waits: REASON", "refused: TEXT", and "failed: TEXT", which no row expects.
OK, WAITS, REFUSED, FAILED = "ok", "waits", "refused", "failed"
# Outcome of "follow" where nothing was submitted.
NOTHING = "nothing submitted"
BASH = "/bin/bash"

Act = Callable[[Site], None]


@dataclass(frozen=True)
class Quirk:
    """One row of the table.

    Attributes:
        name: Name of the row.
        how: Description for the report.
        expected: Column -> outcome, where it is not "ok". What follows "waits: " and "refused: " must be part of what
            is said.
        start_file: Lines of the start file of the login user's shell, in the shell's language.
        greets_later: The start file appears when the job is followed already.
        shell: Login shell of the user.
        commands: Program -> shell text that takes its place on all hosts; ``$REAL`` is the real program.
        commands_on: Program -> the same, on the first node only.
        cluster: Values of the cluster file; mappings are merged.
        sbatch: Resources of the jobs.
        stage: The job that is followed is that of stage prepare, with data and model there; else a script.
        nodes: Nodes of the run that is checked.
        prepare: Makes the rest of the quirk.
        mend: Undoes ``prepare``; called also after an error.
        lift: Called while a job or a submission waits, after which it must go on.
        needs: Program or file without which the row is skipped.
        followed: Further text that the log of the followed job must contain.
    """

    name: str
    how: str
    expected: Mapping[str, str] = field(default_factory=dict)
    start_file: str = ""
    greets_later: bool = False
    shell: str = BASH
    commands: Mapping[str, str] = field(default_factory=dict)
    commands_on: Mapping[str, str] = field(default_factory=dict)
    cluster: Mapping[str, Any] = field(default_factory=dict)
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    stage: bool = False
    nodes: int = 2
    prepare: Act | None = None
    mend: Act | None = None
    lift: Act | None = None
    needs: str = ""
    followed: Sequence[str] = ()

    def expects(self, column: str) -> str:
        """Return the expected outcome of a column."""
        return self.expected.get(column, OK)

    def lacks(self) -> str:
        """Return why the row cannot be played on this machine; empty if it can."""
        return f"{self.needs} is not installed" if self.needs and not Path(self.needs).exists() else ""

    @property
    def accepts_jobs(self) -> bool:
        """False if a job has to be submitted before the quirk is there, so that it can be cancelled and swept."""
        return self.expects("submit") == OK


@dataclass(frozen=True)
class Cell:
    """Result of one column.

    Attributes:
        expected: The expected outcome.
        found: The outcome.
        said: Warnings and notes for the user.
        seconds: Duration.
    """

    expected: str
    found: str
    said: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """True if the outcome is as expected."""
        wanted, _, text = self.expected.partition(": ")
        kind, _, found = self.found.partition(": ")
        return kind == wanted and text in found

    def as_dict(self) -> dict[str, Any]:
        """Return the cell as in report.json."""
        return {
            "as_expected": self.good,
            "expected": self.expected,
            "found": self.found,
            "said": list(self.said),
            "took_s": self.seconds,
        }
