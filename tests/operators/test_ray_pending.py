"""A Ray job that no node of the cluster can run, on a real Ray cluster of one node with one GPU."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from llm_bridge.operators.exceptions import RayJobPermanentError
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.operators.retry_policy import DiagnosisRetryPolicy
from llm_bridge.operators.slurm import SlurmCancelOperator
from llm_bridge.ray import dashboard
from llm_bridge.ray.spec import RayJob
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing.small_ray import SETTINGS

SECOND = 1 / 60


@pytest.fixture(scope="module")
def ray(slurm: Any, new_task: Any) -> Iterator[dict[str, Any]]:
    """Output of RayClusterOperator."""
    stage = f"{slurm.workspace}/pending"
    resources = Resources(nodes=1, gpus_per_node=1, cpus_per_task=4)
    job = SlurmJob(
        cluster="test", template="ray_cluster", settings=SETTINGS, resources=resources, directory=stage
    )
    task = new_task("pending-up")
    yield task.run(RayClusterOperator(task_id="up", job=job))
    SlurmCancelOperator(task_id="down", stage=lambda context: ("test", stage)).execute(task.context)


@pytest.fixture(autouse=True)
def short_wait_for_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm on this machine reports a lost cluster within seconds."""
    monkeypatch.setattr("llm_bridge.triggers.ray_from_files.CAUSE_SECONDS", 3.0)


def submit(task: Any, where: dict[str, Any], job: RayJob) -> dict[str, Any]:
    return RaySubmitJobOperator(task_id="submit", ray=where, job=job).execute(task.context)


def wait(task: Any, submitted: dict[str, Any], minutes: float = 2 * SECOND) -> dict[str, Any]:
    return task.run(
        RayJobSensor(task_id="wait", submitted=submitted, pending_minutes=minutes, poll_interval=1)
    )


def test_a_job_that_no_node_can_run_fails_without_a_retry_and_lists_requested_and_existing_resources(
    new_task: Any, ray: dict[str, Any]
) -> None:
    task = new_task("pending-gpu")
    submitted = submit(task, ray, RayJob(entrypoint=["true"], entrypoint_num_gpus=2, entrypoint_num_cpus=1))
    with pytest.raises(RayJobPermanentError) as error:
        wait(task, submitted)
    assert DiagnosisRetryPolicy().evaluate(error.value, 1, 3).action is RetryAction.FAIL
    text = str(error.value)
    assert "cannot start: it requests" in text and "GPU 2" in text
    assert "no node of its Ray cluster has that: " in text and "GPU 1" in text


def test_a_job_may_wait_for_resources_that_another_job_uses(new_task: Any, ray: dict[str, Any]) -> None:
    first, second = new_task("pending-first"), new_task("pending-second")
    one = {"entrypoint_num_gpus": 1}
    submit(first, ray, RayJob(entrypoint=["sleep", "12"], **one))
    began = time.monotonic()
    done = wait(second, submit(second, ray, RayJob(entrypoint=["true"], **one)))
    assert done["status"] == "SUCCEEDED" and time.monotonic() - began > 5


@pytest.fixture
def address(ray: dict[str, Any], slurm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the ssh command of the log, with the test's key and host key; return the address that it forwards to."""
    monkeypatch.setattr(dashboard, "LOCAL_PORT", 28265)
    command = dashboard.ssh_command("test", ray["result"]["dashboard"])
    ours = ["-i", str(slurm.ssh_key), "-o", f"UserKnownHostsFile={slurm.known_hosts}", "-o", "BatchMode=yes"]
    forward = subprocess.Popen([*shlex.split(command), *ours])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 28265)):
                break
            time.sleep(0.1)
        yield "http://127.0.0.1:28265"
    finally:
        forward.terminate()
        forward.wait()


@pytest.fixture
def token(ray: dict[str, Any], slurm: Any) -> str:
    """Read the token from the file that the log names, as the job's user."""
    text = dashboard.describe("test", ray["directory"], ray["result"]["dashboard"])
    (path,) = re.findall(r"a token, which is in (\S+) on the cluster", text)
    assert slurm.run("login", ["cat", path], user="other").returncode != 0, "no other user may read it"
    return slurm.run("login", ["cat", path], user="svc").stdout


def test_a_user_can_open_the_dashboard_with_the_ssh_command_and_the_token_of_the_log(
    address: str, token: str
) -> None:
    assert "<html" in urllib.request.urlopen(address).read().decode()
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    assert urllib.request.urlopen(request).status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/api/jobs/")


def test_the_error_of_a_job_on_a_foreign_ray_cluster_is_the_same(
    new_task: Any, address: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster is reached by its address and token, as any Ray cluster."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_PLAIN", json.dumps({"conn_type": "http", "password": token}))
    target = {"address": address, "conn_id": "ray_plain"}
    good, bad = new_task("pending-plain"), new_task("pending-plain-never")
    assert wait(good, submit(good, target, RayJob(entrypoint=["true"])))["status"] == "SUCCEEDED"
    never = submit(bad, target, RayJob(entrypoint=["true"], entrypoint_resources={"fast": 1}))
    with pytest.raises(RayJobPermanentError, match=r"requests.* fast 1 on one node(.|\n)*fast 0"):
        wait(bad, never)
