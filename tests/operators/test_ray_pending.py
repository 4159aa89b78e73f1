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
from airflow.sdk.exceptions import AirflowFailException

from llm_bridge.failures.errors import RayJobCannotSucceed
from llm_bridge.ray import dashboard
from llm_bridge.ray.job import RayJob
from llm_bridge.ray.operators import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.ray.sensors import RayJobSensor
from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.teardown import SlurmCancelOperator
from tests.operators.small_ray import SETTINGS

SECOND = 1 / 60


@pytest.fixture(scope="module")
def ray(slurm: Any, new_task: Any) -> Iterator[dict[str, Any]]:
    """What RayClusterOperator returned."""
    stage = f"{slurm.workspace}/pending"
    resources = Resources(nodes=1, gpus_per_node=1, cpus_per_task=4)
    job = SlurmJob(
        cluster="test", template="ray_cluster", settings=SETTINGS, resources=resources, directory=stage
    )
    task = new_task("pending-up")
    yield task.run(RayClusterOperator(task_id="up", job=job))
    SlurmCancelOperator(task_id="down", stage=lambda context: ("test", stage)).execute(task.context)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm on this machine names a lost cluster within seconds."""
    monkeypatch.setattr("llm_bridge.ray.by_files.CAUSE_SECONDS", 3.0)


def submit(task: Any, where: dict[str, Any], job: RayJob) -> dict[str, Any]:
    return RaySubmitJobOperator(task_id="submit", ray=where, job=job).execute(task.context)


def wait(task: Any, submitted: dict[str, Any], minutes: float = 2 * SECOND) -> dict[str, Any]:
    return task.run(
        RayJobSensor(task_id="wait", submitted=submitted, pending_minutes=minutes, poll_interval=1)
    )


def test_a_job_that_no_node_can_run_fails_for_good_with_what_it_asked_for_and_what_there_is(
    new_task: Any, ray: dict[str, Any]
) -> None:
    task = new_task("pending-gpu")
    submitted = submit(task, ray, RayJob(entrypoint=["true"], entrypoint_num_gpus=2, entrypoint_num_cpus=1))
    with pytest.raises(RayJobCannotSucceed) as error:
        wait(task, submitted)
    assert isinstance(error.value, AirflowFailException), "no retry can help"
    told = str(error.value)
    assert "cannot start: it asks for" in told and "GPU 2" in told
    assert "no node of its Ray cluster has that: " in told and "GPU 1" in told


def test_a_job_that_waits_for_what_another_uses_is_waited_for(new_task: Any, ray: dict[str, Any]) -> None:
    first, second = new_task("pending-first"), new_task("pending-second")
    one = {"entrypoint_num_gpus": 1}
    submit(first, ray, RayJob(entrypoint=["sleep", "12"], **one))
    began = time.monotonic()
    done = wait(second, submit(second, ray, RayJob(entrypoint=["true"], **one)))
    assert done["status"] == "SUCCEEDED" and time.monotonic() - began > 5


@pytest.fixture
def address(ray: dict[str, Any], slurm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the ssh command of the log leads: what it says is done, with the test's key and host key."""
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
    """From the file that the log names, as the job's user."""
    told = dashboard.tell("test", ray["directory"], ray["result"]["dashboard"])
    (path,) = re.findall(r"the token: (\S+) on the cluster", told)
    assert slurm.run("login", ["cat", path], user="other").returncode != 0, "for nobody else"
    return slurm.run("login", ["cat", path], user="svc").stdout


def test_a_person_reaches_the_dashboard_by_the_ssh_command_and_the_token_of_the_log(
    address: str, token: str
) -> None:
    assert "<html" in urllib.request.urlopen(address).read().decode()
    asked = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    assert urllib.request.urlopen(asked).status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/api/jobs/")


def test_a_job_on_a_ray_cluster_of_somebody_else_is_told_in_the_same_way(
    new_task: Any, address: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its address and token, as any Ray cluster is reached."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_PLAIN", json.dumps({"conn_type": "http", "password": token}))
    target = {"address": address, "conn_id": "ray_plain"}
    good, bad = new_task("pending-plain"), new_task("pending-plain-never")
    assert wait(good, submit(good, target, RayJob(entrypoint=["true"])))["status"] == "SUCCEEDED"
    never = submit(bad, target, RayJob(entrypoint=["true"], entrypoint_resources={"fast": 1}))
    with pytest.raises(RayJobCannotSucceed, match=r"asks for.* fast 1 on one node(.|\n)*fast 0"):
        wait(bad, never)
