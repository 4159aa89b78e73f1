"""Causes of failed jobs, each produced for real on the local cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_bridge.diagnosis.classes import Action
from llm_bridge.slurm.spec import Resources, SlurmJob, StageOutput
from testing.local_cluster import LocalCluster
from testing.paths import home

CLUSTER_ENV = home() / "cluster-env"
# A stand-in for verl that writes checkpoints as verl does (one process), and resumes from the newest.
TRAINING = """\
import json, os, pathlib, sys, time, zipfile
s = json.loads(sys.argv[1]) if sys.argv[1:] else json.load(open(os.environ["ATTEMPT_DIR"] + "/settings.json"))
d = pathlib.Path(s["checkpoint_dir"])
d.mkdir(exist_ok=True)
step = max([int(p.name.rpartition("_")[2]) for p in d.glob("global_step_*")] or [0])
print("resuming from step", step, flush=True)
def whole(path):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("data", "x")
while step < s["steps"]:
    time.sleep(s["seconds"])
    step += 1
    print(f"step:{step} - train/loss:0.5", flush=True)
    if step % s["save_freq"] == 0 or step == s["steps"]:
        c = d / f"global_step_{step}"
        c.mkdir(exist_ok=True)
        (c / "fsdp_config.json").write_text('{"world_size": 1}')
        for kind in ("model", "optim", "extra_state"):
            whole(c / f"{kind}_world_size_1_rank_0.pt")
        whole(c / "data_0.pt")
"""
HYDRA = """\
import importlib.util, hydra
d = importlib.util.find_spec("verl").submodule_search_locations[0] + "/trainer/config"
with hydra.initialize_config_dir(d, version_base=None):
    hydra.compose("sft_trainer_engine", overrides=["trainer.no_such=1"])
"""


@dataclass(frozen=True)
class Cause:
    """One cause of a failed job.

    Attributes:
        name: Name of the cause, also the stage's directory.
        how: Description for reports.
        kind: Expected class of the diagnosis.
        action: Expected action of the diagnosis.
        evidence: Text that the evidence line must contain.
        script: Script of the job, without its first line.
        settings: Settings of a training (``TRAINING``), which then takes the place of the script.
        sbatch: Resources of the job.
        meddle: Called with the cluster and the first job's id when the job runs.
        mend: Called afterwards.
    """

    name: str
    how: str
    kind: str
    action: Action
    evidence: str
    script: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    sbatch: dict[str, Any] = field(default_factory=dict)
    meddle: Callable[[LocalCluster, str], None] | None = None
    mend: Callable[[LocalCluster], None] | None = None

    def job(self, workspace: Path, cluster: str, run: str) -> SlurmJob:
        """Return the job that fails, with its own stage directory."""
        directory = f"{workspace}/{run}/{self.name}"
        resources = Resources(**{"cpus_per_task": 1, "mem": "200M", **self.sbatch})
        if not self.settings:
            return SlurmJob(
                cluster=cluster,
                script=f"#!/bin/bash\n{self.script}\n",
                directory=directory,
                resources=resources,
            )
        saves = f"{directory}/checkpoints"
        return SlurmJob(
            cluster=cluster,
            script=f"#!/usr/bin/python3\n{TRAINING}",
            settings={"checkpoint_dir": saves, **self.settings},
            output=StageOutput(outputs=[saves]),
            directory=directory,
            resources=resources,
        )


def replace_steps(cause: Cause, steps: int, **changes: Any) -> Cause:
    """Return the cause with another number of steps, and optionally another ``save_freq`` and ``name``."""
    settings = {
        **cause.settings,
        "steps": steps,
        "save_freq": changes.get("save_freq", cause.settings["save_freq"]),
    }
    return replace(cause, name=changes.get("name", cause.name), settings=settings)


def now_is_its_limit(cluster: LocalCluster, job_id: str) -> None:
    """Set the job's end time to now; slurmctld checks time limits every 30 s.

    Slurm refuses a time in the past, which "now" is when a second of the clock ends between scontrol and slurmctld.
    """
    update = ["scontrol", "update", f"jobid={job_id}", "EndTime=now"]
    assert any(cluster.run("ctl", update).returncode == 0 for _ in range(5)), f"job {job_id} has no end time"


def preempt(cluster: LocalCluster, job_id: str) -> None:
    """Submit a short job to a partition of higher priority, which takes the job's nodes."""
    options = ["--partition=high", "--exclusive", f"--nodelist={nodes_of(cluster, job_id)}"]
    wrap = ["sbatch", *options, "--output=/dev/null", "--wrap", "sleep 2"]
    cluster.run("login", wrap, user="svc")


def cancel(cluster: LocalCluster, job_id: str) -> None:
    """Cancel the job with scancel, as the jobs' user."""
    cluster.run("login", ["scancel", job_id], user="svc")


def power_off(cluster: LocalCluster, job_id: str) -> None:
    """Power off the node on which the job runs."""
    cluster.power_off(nodes_of(cluster, job_id))


def wait_until_running(cluster: LocalCluster, job_id: str, seconds: float = 30) -> None:
    """Wait until Slurm reports that the job runs."""
    until = time.monotonic() + seconds
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    while cluster.run("login", ask, user="svc").stdout.strip() != "RUNNING":
        assert time.monotonic() < until, f"job {job_id} does not run"
        time.sleep(0.2)


def nodes_of(cluster: LocalCluster, job_id: str) -> str:
    """Return the nodes of a job in squeue's notation."""
    ask = ["squeue", "-h", "-o", "%N", "-j", job_id]
    return cluster.run("login", ask, user="svc").stdout.strip()


def power_on_all(cluster: LocalCluster) -> None:
    """Undo :func:`power_off`."""
    for number in range(1, cluster.settings.nodes + 1):
        cluster.power_on(f"n{number}")
    cluster.wait_for_nodes()


def small_disk(cluster: LocalCluster) -> None:
    """Mount a file system of 64 KiB on the first node."""
    cluster.run("n1", ["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "tmpfs", "/mnt"])


def wait_for_step(workspace: Path, run: str, name: str, step: int, seconds: float = 60) -> None:
    """Wait until the stand-in has saved ``step``."""
    until = time.monotonic() + seconds
    while not (workspace / run / name / "checkpoints" / f"global_step_{step}" / "data_0.pt").exists():
        assert time.monotonic() < until, f"step {step} was not saved"
        time.sleep(0.2)


TRAINS = {"steps": 12, "save_freq": 2, "seconds": 0.5}
# After the first saved step the job still runs long enough to be ended in the middle.
SAVED = 2
NOT_REQUEUED = {"options": {"no-requeue": None}}

CAUSES: tuple[Cause, ...] = (
    Cause("missing_path", "a program opens a file that is not there", "missing_path", Action.STOP,
          "/no/such/train.parquet", script="python3 -c \"open('/no/such/train.parquet')\""),
    Cause("hydra_key", "a key that verl does not have", "bad_config", Action.STOP, "trainer.no_such",
          script=f"{CLUSTER_ENV}/bin/python - <<'END'\n{HYDRA}END"),
    Cause("import", "a Python package that is not there", "environment", Action.STOP, "flash_attn_not_there",
          script="python3 -c 'import flash_attn_not_there'"),
    Cause("command", "a command that is not there", "environment", Action.STOP, "torchrun_not_there",
          script="torchrun_not_there --nnodes=2"),
    Cause("no_space", "a write to a file system that is full", "disk_full", Action.STOP, "No space left on device",
          script="dd if=/dev/zero of=/mnt/checkpoint.pt bs=1M count=4", sbatch={"nodelist": "n1"}),
    Cause("over_memory", "a program takes more memory than it asked for", "host_oom", Action.STOP, "memory",
          script="python3 -c 'import time; x = b\"1\" * (400 << 20); time.sleep(30)'",
          sbatch={"mem": "100M"}),
    Cause("killed", "SIGKILL to the program", "unknown", Action.LATER, "Killed", script="echo alive; kill -9 $$"),
    Cause("cancelled", "scancel by a person", "cancelled", Action.STOP, "svc (uid", script="sleep 100",
          meddle=cancel),
    Cause("time_limit", "scontrol update EndTime=now in the middle of a training", "time_limit", Action.CONTINUE,
          "TIMEOUT", settings={**TRAINS, "steps": 90}, meddle=now_is_its_limit),  # checked every 30 s
    Cause("preempted", "a job of the partition above takes the nodes", "preempted", Action.CONTINUE, "PREEMPTED",
          settings={**TRAINS, "steps": 20}, sbatch={"partition": "lowcancel"}, meddle=preempt),
    Cause("node_off", "the node's power cord", "node_failure", Action.CONTINUE, "NODE_FAIL",
          settings={**TRAINS, "steps": 20}, sbatch=NOT_REQUEUED, meddle=power_off, mend=power_on_all),
)  # fmt: skip
BY_NAME = {cause.name: cause for cause in CAUSES}
