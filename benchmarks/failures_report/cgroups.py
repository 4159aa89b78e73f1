"""Memory cgroup around a job, as on real sites: the kernel kills, and Slurm's state is OUT_OF_MEMORY.

The local cluster has none (its nodes share one kernel), so one node gets Slurm's task/cgroup for this case.
Slurm 22.05 creates its cgroups of version 1 in the root of the hierarchy; version 2 needs systemd.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.failures_report.case import Case, Site
from llm_bridge.diagnosis.classes import Action
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.slurm.spec import Resources, SlurmJob

MEMORY = Path("/sys/fs/cgroup/memory")
NODE = "n1"
SLURMS = MEMORY / f"slurm_{NODE}"
ETC = "/run/slurm-with-cgroups"
CONFIGURE = f"""\
set -e
cp -a /etc/slurm {ETC}
sed -i 's#^TaskPlugin=.*#TaskPlugin=task/cgroup#; s#^JobAcctGatherParams=.*##' {ETC}/slurm.conf
printf '%s\\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup ConstrainRAMSpace=yes > {ETC}/cgroup.conf
mount --bind {ETC} /etc/slurm
"""


def lacking() -> str:
    """Return the reason why the case cannot run on this machine; empty if it can."""
    if not (MEMORY / "release_agent").exists():
        return f"this machine has no memory cgroups of version 1 at {MEMORY}, which Slurm 22.05 without systemd needs"
    if not os.access(MEMORY, os.W_OK):
        return f"{MEMORY} is not writable: another user owns the cgroups"
    if SLURMS.exists():
        return (
            f"{SLURMS} exists already: a Slurm on this machine uses it, or has left it (remove it with rmdir)"
        )
    return ""


def constrain(site: Site) -> None:
    """Give one node memory cgroups."""
    site.run(NODE, "sh", "-c", CONFIGURE)
    site.cluster.restart("slurmd", NODE)
    site.cluster.wait_for_nodes([NODE])


def release(site: Site) -> None:
    """Restore the node's configuration and remove its cgroups, which are empty now."""
    site.end_jobs()
    site.cluster.stop("slurmd", NODE)
    site.run(NODE, "sh", "-c", f"umount -l /etc/slurm; rm -rf {ETC}")
    for folder in sorted([SLURMS, *SLURMS.rglob("*")], reverse=True):
        if folder.is_dir():
            folder.rmdir()
    site.cluster.start("slurmd", NODE)
    site.cluster.wait_for_nodes([NODE])


def over(site: Site, options: dict[str, Any]) -> SlurmSubmitOperator:
    """Return the operator of a job step that allocates four times its requested memory."""
    job = SlurmJob(
        cluster=site.name,
        script="#!/bin/bash\nsrun python3 -c 'x = b\"1\" * (400 << 20)'\n",
        directory=site.stage(options["task_id"]),
        resources=Resources(cpus_per_task=1, mem="100M", nodelist=NODE),
    )
    return SlurmSubmitOperator(job=job, **options)


CASES: tuple[Case, ...] = (
    Case("cgroup_memory", "the kernel kills a program in its memory cgroup", "host_oom", Action.STOP, "OUT_OF_MEMORY",
         over, prepare=constrain, mend=release),
)  # fmt: skip
