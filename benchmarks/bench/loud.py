"""Section about logs: 100 jobs that write ten lines a second each, shown in the tasks' logs."""

from __future__ import annotations

from typing import Any

from benchmarks.bench.following import OURS, follow
from benchmarks.bench.support import Bench, Figure, Section

JOBS, SECONDS = 100, 45.0
PEER = "SSHRemoteJobOperator"


def run(bench: Bench) -> dict[str, Any]:
    """Follow loud jobs with both."""
    return {name: follow(bench, name, JOBS, SECONDS, loud=True) for name in (OURS, PEER)}


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return how far the log is behind, and what it costs."""
    ours, peer = found[OURS], found[PEER]
    note = (
        f"Logs: {JOBS} jobs write ten lines a second each for {SECONDS:.0f} s; the lines are read from the output of "
        "the process that runs the triggers. The peer's jobs run in srun, whose output it reads"
    )
    return [
        Figure(
            "line behind its writing, p99, s",
            ours["behind_s"]["p99"],
            2,
            {PEER: peer["behind_s"]["p99"]},
            note=note,
        ),
        Figure(
            "line behind its writing, p50, s", ours["behind_s"]["p50"], None, {PEER: peer["behind_s"]["p50"]}
        ),
        Figure(
            "lines shown a second",
            ours["lines_a_second"],
            None,
            {PEER: peer["lines_a_second"]},
            at_least=True,
        ),
        Figure(
            "triggerer's CPU meanwhile, % of a core",
            ours["ending"]["cpu_percent"],
            20,
            {PEER: peer["ending"]["cpu_percent"]},
        ),
    ]


SECTION = Section("log", "Logs", run, figures)
