"""All cases, and the classes that they leave out."""

from __future__ import annotations

from benchmarks.failures_report import cgroups, jobs, rays, stages
from benchmarks.failures_report.case import Case
from llm_bridge.diagnosis.classes import CLASSES

# Slurm's cgroups come last: they change a node.
CASES: tuple[Case, ...] = (
    *jobs.CASES,
    *stages.CASES,
    *rays.CASES,
    *(() if cgroups.lacking() else cgroups.CASES),
)


def left_out() -> dict[str, str]:
    """Return the classes that are not caused for real, with the reasons."""
    real = {case.kind for case in CASES if case.caused == "real"}
    shown = {case.kind for case in CASES}
    return {
        **({"cgroup_memory": why} if (why := cgroups.lacking()) else {}),
        **{kind: "only by logs, because it needs GPUs" for kind in CLASSES if kind in shown - real},
        **{kind: "no case" for kind in CLASSES if kind not in shown},
    }
