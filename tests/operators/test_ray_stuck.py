"""A hung Ray job that Ray cannot stop, on a real cluster: it ends with its cluster and resumes on another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_bridge.operators.exceptions import RayJobFailed
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.operators.retry_policy import DiagnosisRetryPolicy
from llm_bridge.operators.slurm import SlurmCancelOperator
from llm_bridge.ray.spec import RayJob
from llm_bridge.remote import attempt_dir
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.slurm.cancellation import cancel_and_wait
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing.small_ray import SETTINGS

# The driver stops a part of Ray on its node, as SIGSTOP from outside would, and then itself.
HANGS = """
import os, pathlib, signal, sys, time
own = 0
for line in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
        command = line.read_bytes().decode().replace(chr(0), " ")
    except OSError:
        continue
    if sys.argv[1] in command and int(line.parent.name) != os.getpid() and "ray_job.sh" not in command:
        os.kill(int(line.parent.name), signal.SIGSTOP)
        own += 1
print("stopped", own, "process(es)", flush=True)
assert own
os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(600)
"""


@pytest.mark.parametrize("part", ["ray::JobSupervisor", "dashboard/dashboard.py"])
def test_a_hung_job_that_ray_cannot_stop_ends_with_its_cluster_and_resumes_on_another(
    part: str, slurm: Any, new_task: Any, logged: Any
) -> None:
    name = part.partition("/")[0].replace("::", "-")
    stage = f"{slurm.workspace}/stuck-{name}"
    resources = Resources(nodes=1, gpus_per_node=1, cpus_per_task=4)
    cluster_job = SlurmJob(
        cluster="test", template="ray_cluster", settings=SETTINGS, resources=resources, directory=stage
    )
    submitter, task = new_task(f"stuck-{name}"), new_task(f"stuck-{name}-wait")
    try:
        ray = submitter.run(RayClusterOperator(task_id="up", job=cluster_job))
        job = RayJob(entrypoint=["python3", "-c", HANGS, part], directory=stage)
        submitted = RaySubmitJobOperator(task_id="submit", ray=ray, job=job).execute(submitter.context)

        def wait(job: RayJob, **more: Any) -> RayJobSensor:
            return RayJobSensor(task_id="wait", submitted=submitted, job=job, ray_cluster=cluster_job, **more)

        with pytest.raises(RayJobFailed, match="The job hung") as failed:
            task.run(wait(job, hang_minutes=0.1, on_hang="retry", retries=1))
        lines = logged()
        assert any("Ray did not stop job" in line and "cancelling its cluster" in line for line in lines)
        error = failed.value
        assert error.diagnosis.kind == "hang" and error.diagnosis.evidence.startswith("hang: no output")
        assert not asyncio.run(cancel_and_wait("test", [ray["job_id"]], seconds=60))
        assert DiagnosisRetryPolicy().evaluate(error, 1, 1).action.value == "retry"

        task.retry()
        done = task.run(wait(RayJob(entrypoint=["python3", "-c", "print('again')"], directory=stage)))
        assert done["status"] == "SUCCEEDED" and done["submission_id"] != submitted["submission_id"]
        assert task.xcoms["slurm_job"]["job_id"] != ray["job_id"]
    finally:
        down = SlurmCancelOperator(
            task_id="down", stage=lambda context: ("test", stage, f"{stage}/{attempt_dir.RECOVERY}")
        )
        down.execute(submitter.context)
