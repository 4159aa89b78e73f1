"""Cases of Ray: a cluster that does not start, one that fails, and jobs that fail on a healthy one."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.failures_report.case import DAG, RUN, Case, Site
from llm_bridge.diagnosis.classes import Action
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.ray.spec import RayJob
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.slurm.spec import Resources, SlurmJob, StageOutput
from testing import causes
from testing.causes import TRAINING
from testing.small_ray import SETTINGS
from testing.task_context import Task

TEMP_DIR = "/tmp/ray"
# A driver that reads data on a worker, as a training does.
READS_ON_A_WORKER = """\
import ray
ray.init(log_to_driver=False)
@ray.remote
def load(path):
    return open(path).read()
print("reading", flush=True)
ray.get(load.remote("/no/such/train.parquet"))
"""
GROWS_ON_A_WORKER = """\
import ray, time
ray.init(log_to_driver=False)
@ray.remote(max_retries=0)
def grow():
    held = []
    for _ in range(40):
        held.append(b"1" * (100 << 20))
        time.sleep(0.1)
print("growing", flush=True)
ray.get(grow.remote())
"""
PREFLIGHT = {
    "gpus_per_node": 1,
    "device": "cpu",
    "ray": True,
    "temp_dir": TEMP_DIR,
    "min_free_gib": 0.5,
    "max_clock_skew_seconds": 5,
    "all_reduce_seconds": 0,
}
# Distance of the threshold from the machine's used memory.
ROOM_GIB = 1.2


def cluster_job(site: Site, name: str, *, cluster: str = "", nodes: int = 1, **settings: Any) -> SlurmJob:
    """Return the Slurm job of a small Ray cluster."""
    return SlurmJob(
        cluster=cluster or site.name,
        template="ray_cluster",
        settings={**SETTINGS, "nodes": nodes, **settings},
        resources=Resources(
            nodes=nodes, gpus_per_node=1, cpus_per_task=4, mem="8G", options={"no-requeue": None}
        ),
        directory=site.stage(name),
    )


def bring_up(site: Site, options: dict[str, Any], **settings: Any) -> RayClusterOperator:
    """Return the operator that starts a Ray cluster."""
    return RayClusterOperator(job=cluster_job(site, options["task_id"], **settings), **options)


def waiting(site: Site, options: dict[str, Any], job: RayJob, cluster: SlurmJob) -> RayJobSensor:
    """Start a cluster and submit a job as the tasks before do, and return the sensor that waits for it."""
    before = Task(f"{options['task_id']}_before", dag_id=DAG, run_id=RUN, known=True)
    up = before.run(RayClusterOperator(task_id="up", job=cluster))
    submitted = RaySubmitJobOperator(task_id="submit", ray=up, job=job).execute(before.context)
    return RayJobSensor(submitted=submitted, job=job, ray_cluster=cluster, **options)


def program(site: Site, options: dict[str, Any], code: str, cluster: str = "") -> RayJobSensor:
    """Return the sensor of a driver given as Python code."""
    name = options["task_id"]
    job = RayJob(entrypoint=["python3", "-c", code], directory=site.stage(name))
    return waiting(site, options, job, cluster_job(site, name, cluster=cluster))


def training(site: Site, options: dict[str, Any]) -> RayJobSensor:
    """Return the sensor of a stand-in for PPO, which writes checkpoints and resumes from the newest."""
    name = options["task_id"]
    saves = f"{site.stage(name)}/checkpoints"
    settings = {"checkpoint_dir": saves, **causes.TRAINS, "steps": 30}
    job = RayJob(
        entrypoint=["python3", "-c", TRAINING, json.dumps(settings)],
        settings=settings,
        directory=site.stage(name),
        output=StageOutput(outputs=[saves]),
    )
    return waiting(site, options, job, cluster_job(site, name))


def kill_head(site: Site, trigger: Any) -> None:
    """Send SIGKILL to the GCS in the middle of the training."""
    causes.wait_for_step(site.workspace, RUN, "ray_head", causes.SAVED)
    node = causes.nodes_of(site.cluster, trigger.target["job_id"])
    site.run(node, "pkill", "-KILL", "-f", "gcs_server")


def low_on_memory(site: Site, options: dict[str, Any]) -> RayJobSensor:
    """Return the sensor of a job under Ray's memory monitor, with a threshold just above the used memory."""
    with open("/proc/meminfo") as lines:
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    used = 1 - kib["MemAvailable"] / kib["MemTotal"]
    threshold = used + ROOM_GIB * 2**20 / kib["MemTotal"]
    variables = {
        "RAY_memory_monitor_refresh_ms": "100",
        "RAY_memory_usage_threshold": f"{threshold:.3f}",
    }
    name = site.variant("low_on_memory", variables=variables)
    return program(site, options, GROWS_ON_A_WORKER, cluster=name)


def occupy(site: Site, node: str, options: str) -> None:
    """Mount a tmpfs at Ray's temporary directory on a node."""
    site.run(node, "mkdir", "-m", "1777", "-p", TEMP_DIR)  # the jobs of other cases need it, too
    site.run(node, "mount", "-t", "tmpfs", "-o", options, "tmpfs", TEMP_DIR)


def give_back(site: Site, node: str) -> None:
    """Unmount the file system of :func:`occupy`."""
    site.run(node, "umount", "-l", TEMP_DIR)


CASES: tuple[Case, ...] = (
    Case("bad_node", "preflight on a node whose disk is full", "bad_node", Action.ELSEWHERE, "min_free_gib",
         lambda site, options: bring_up(site, options, preflight=PREFLIGHT), node=True,
         prepare=lambda site: occupy(site, "n1", "size=64k,mode=1777"), mend=lambda site: give_back(site, "n1")),
    Case("ray_bring_up", "a worker node on which Ray can write no file", "ray_bring_up", Action.ELSEWHERE, "n2",
         lambda site, options: bring_up(site, options, nodes=2), node=True,
         prepare=lambda site: occupy(site, "n2", "ro"), mend=lambda site: give_back(site, "n2")),
    Case("ray_head", "SIGKILL to the Ray head's GCS in the middle of a training", "node_failure", Action.CONTINUE,
         "gcs_server", training, node=True, meddle=kill_head, log="ray-1/output.log"),
    Case("ray_python", "a Ray task of the job opens a missing file", "missing_path", Action.STOP,
         "/no/such/train.parquet", lambda site, options: program(site, options, READS_ON_A_WORKER)),
    Case("ray_memory", "Ray's memory monitor kills a worker", "host_oom", Action.STOP, "low on memory",
         low_on_memory, node=True),
)  # fmt: skip
