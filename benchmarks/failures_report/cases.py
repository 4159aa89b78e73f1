"""All cases, and what they leave out."""

from __future__ import annotations

from benchmarks.failures_report import cgroups, jobs, rays, stages
from benchmarks.failures_report.case import Case
from llm_bridge.failures.kinds import KINDS

# Slurm's cgroups come last: they change a node.
CASES: tuple[Case, ...] = (
    *jobs.CASES,
    *stages.CASES,
    *rays.CASES,
    *(() if cgroups.lacking() else cgroups.CASES),
)


def left_out() -> dict[str, str]:
    """What is not caused for real, and why."""
    real = {case.kind for case in CASES if case.caused == "real"}
    shown = {case.kind for case in CASES}
    return {
        **({"cgroup_memory": why} if (why := cgroups.lacking()) else {}),
        **{kind: "by logs alone: it takes GPUs" for kind in KINDS if kind in shown - real},
        **{kind: "no case" for kind in KINDS if kind not in shown},
    }
