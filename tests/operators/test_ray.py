"""Ray operators with a real Ray cluster that they start on two nodes of the real Slurm cluster."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import datetime
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.providers.ssh.hooks.ssh import SSHHookAsync

from llm_bridge.exceptions import RayRequestError
from llm_bridge.operators.exceptions import RayJobFailed, SlurmJobFailed
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.operators.slurm import SlurmCancelOperator
from llm_bridge.ray.client import RayTarget, ray_client
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.ray.spec import RayJob
from llm_bridge.remote.host_session import IDLE_VARIABLE
from llm_bridge.remote.ssh_transport import SshTransport
from llm_bridge.sensors.ray import RayJobSensor
from llm_bridge.slurm.spec import Resources, SlurmJob
from llm_bridge.triggers.ray import RayJobTrigger

SETTINGS = {
    "nodes": 2,
    "gpus_per_node": 8,
    "device": "cpu",
    "cpus_per_node": 4,
    "object_store_gib": 0.3,
    "temp_dir": "/tmp/ray",
    "ready_minutes": 3,
    "idle_minutes": None,
}


def cluster_job(workspace: Any, name: str, **settings: Any) -> SlurmJob:
    return SlurmJob(
        cluster="test",
        stage="ppo",
        template="ray_cluster",
        settings={**SETTINGS, **settings},
        resources=Resources(nodes=2, gpus_per_node=8, cpus_per_task=8),
        directory=f"{workspace}/{name}",
    )


@pytest.fixture(scope="module")
def ray(slurm: Any, new_task: Any) -> Iterator[dict[str, Any]]:
    """Output of RayClusterOperator for a cluster of two nodes with eight GPUs each."""
    job = cluster_job(slurm.workspace, "ray-module")
    task = new_task("ray-module")
    up = task.run(RayClusterOperator(task_id="up", job=job))
    yield up
    SlurmCancelOperator(task_id="down", stage=lambda context: ("test", job.directory)).execute(task.context)


@pytest.fixture(autouse=True)
def short_wait_for_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm on this machine reports a lost node within seconds, so a failed job need not wait long for that."""
    monkeypatch.setattr("llm_bridge.triggers.ray_from_files.CAUSE_SECONDS", 3.0)


def submit(task: Any, ray: dict[str, Any], *command: str) -> dict[str, Any]:
    return RaySubmitJobOperator(task_id="submit", ray=ray, entrypoint=list(command)).execute(task.context)


def wait(task: Any, submitted: dict[str, Any]) -> dict[str, Any]:
    return task.run(RayJobSensor(task_id="wait", submitted=submitted))


def test_the_cluster_is_ready_when_every_gpu_has_joined_and_its_token_stays_on_the_cluster(
    ray: dict[str, Any],
) -> None:
    assert ray["result"]["total_gpus"] == 16
    assert [node["name"] for node in ray["result"]["nodes"]] == ["n1", "n2"]
    assert "token" not in json.dumps(ray)


def test_a_job_runs_and_its_output_is_in_the_log_once(
    new_task: Any, ray: dict[str, Any], logged: Any
) -> None:
    task = new_task("ray-job")
    code = "import time\nfor i in range(5): print('line', i, flush=True); time.sleep(0.5)"
    done = wait(task, submit(task, ray, "python3", "-c", code))
    assert done["status"] == "SUCCEEDED"
    assert [line for line in logged() if line.startswith("line ")] == [f"line {i}" for i in range(5)]


def test_its_output_is_in_the_log_within_two_seconds(
    new_task: Any, ray: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    task = new_task("ray-live")
    code = "import time\nfor i in range(8): print('at', time.time(), flush=True); time.sleep(0.7)"
    wait(task, submit(task, ray, "python3", "-c", code))
    rows = re.findall(r"^(\S+)Z \[info *\] at (\S+)", capsys.readouterr().out, re.MULTILINE)
    late = [
        datetime.fromisoformat(f"{logged}+00:00").timestamp() - float(written) for logged, written in rows
    ]
    # The first lines may have been written before the first poll.
    assert len(late) == 8 and median(late) < 2, late


def test_a_submission_takes_one_connection_and_one_python_on_the_login_node(
    new_task: Any, ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    log_in, session = SshTransport._log_in, SshTransport.session

    def counted_login(self: Any, hook: Any) -> Any:
        started.append("login")
        return log_in(self, hook)

    def counted_session(self: Any, argv: Any) -> Any:
        started.append("session")
        return session(self, argv)

    monkeypatch.setattr(SshTransport, "_log_in", counted_login)
    monkeypatch.setattr(SshTransport, "session", counted_session)
    monkeypatch.setenv(IDLE_VARIABLE, "0")  # by a connection of the task's own, which is counted here
    task = new_task("ray-counted")
    submitted = submit(task, ray, "true")
    assert sorted(started) == ["login", "session"]
    wait(task, submitted)


def test_arguments_reach_the_entrypoint_as_data(new_task: Any, ray: dict[str, Any], logged: Any) -> None:
    task = new_task("ray-quoting")
    nasty = ["it's", "$(touch /tmp/pwned)", "`id`", 'a"b', "グ"]
    wait(task, submit(task, ray, "python3", "-c", "import sys; print('args', sys.argv[1:])", *nasty))
    assert f"args {nasty}" in logged()


def test_the_error_of_a_failed_job_has_exit_code_and_last_lines(new_task: Any, ray: dict[str, Any]) -> None:
    task = new_task("ray-fails")
    with pytest.raises(RayJobFailed) as error:
        wait(task, submit(task, ray, "python3", "-c", "print('the reason'); raise SystemExit(3)"))
    assert "driver_exit_code 3" in str(error.value) and "| the reason" in str(error.value)


def test_a_second_submit_of_the_same_try_finds_the_job(new_task: Any, ray: dict[str, Any]) -> None:
    task = new_task("ray-twice")
    first = submit(task, ray, "sleep", "3")
    assert submit(task, ray, "sleep", "3") == first
    assert wait(task, first)["status"] == "SUCCEEDED"


def test_a_retry_after_a_failed_job_gets_an_id_of_its_own(new_task: Any, ray: dict[str, Any]) -> None:
    task = new_task("ray-retry")
    first = submit(task, ray, "false")
    with pytest.raises(RayJobFailed):
        wait(task, first)
    second = submit(task, ray, "true")
    assert second["submission_id"] != first["submission_id"]
    assert wait(task, second)["status"] == "SUCCEEDED"


def test_a_cleared_submit_stops_the_old_job_and_makes_a_new_one(new_task: Any, ray: dict[str, Any]) -> None:
    task = new_task("ray-clear")
    old = submit(task, ray, "sleep", "600")
    task.clear()
    new = submit(task, ray, "true")
    assert new["submission_id"] != old["submission_id"]
    with pytest.raises(RayJobFailed, match="STOPPED"):
        wait(task, old)


def test_a_program_of_the_archive_gets_its_settings_as_a_file(
    new_task: Any, ray: dict[str, Any], slurm: Any
) -> None:
    """The program ppo itself runs in tests/e2e; here it must only read and refuse its settings."""
    task = new_task("ray-program")
    job = RayJob(program="ppo", settings={"run": "$(id) 'グ'"}, directory=f"{slurm.workspace}/ray-program")
    submitted = RaySubmitJobOperator(task_id="submit", ray=ray, job=job).execute(task.context)
    settings = slurm.run(
        "login", ["cat", f"{submitted['attempt_directory']}/settings.json"], user="svc"
    ).stdout
    assert json.loads(settings) == {"run": "$(id) 'グ'"}
    with pytest.raises(RayJobFailed, match="FAILED"):
        wait(task, submitted)


def test_a_request_without_the_token_is_refused(ray: dict[str, Any], slurm: Any) -> None:
    url = f"{ray['result']['dashboard']}/api/jobs/"
    program = (
        "import urllib.request, urllib.error, sys\n"
        "try: print(urllib.request.urlopen(sys.argv[1]).status)\n"
        "except urllib.error.HTTPError as e: print(e.code)\n"
    )
    done = slurm.run("login", ["python3", "-c", program, url], user="svc")
    assert done.stdout.strip() == "401"


def test_the_error_of_a_wrong_token_says_so(ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster is reached by its address, as one that llm-bridge did not start."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_WRONG", json.dumps({"conn_type": "http", "password": "0" * 64}))
    where = urlsplit(ray["result"]["dashboard"])

    async def ask() -> Any:
        async with await SSHHookAsync(ssh_conn_id="slurm_local").get_conn() as ssh:
            port = (await ssh.forward_local_port("127.0.0.1", 0, where.hostname, where.port)).get_port()
            target = RayTarget(address=f"http://127.0.0.1:{port}", conn_id="ray_wrong")
            async with ray_client(target) as client:
                await client.job("any")

    with pytest.raises(RayRequestError, match="refused the token"):
        asyncio.run(ask())


HANGS = "import os, signal; print('step one', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"


def test_a_driver_that_hangs_is_stopped_and_the_event_has_the_reason(
    new_task: Any, ray: dict[str, Any]
) -> None:
    task = new_task("ray-hangs")
    submitted = submit(task, ray, "python3", "-c", HANGS)
    sensor = RayJobSensor(task_id="wait", submitted=submitted, hang_minutes=0.1, on_hang="retry")
    with pytest.raises(RayJobFailed, match="The job hung: no output and no new step") as failed:
        task.run(sensor)
    event = failed.value.event
    assert event.notice.startswith("hang: ")
    assert event.hang and event.hang.ended and event.hang.nodes == "n[1-2]"
    stacks = event.hang.stacks
    assert any("T (stopped)" in line and "step one" in line for line in stacks), stacks
    assert wait(task, submit(new_task("ray-hangs-2"), ray, "true"))["status"] == "SUCCEEDED"


def test_a_hang_is_also_detected_if_the_driver_is_followed_by_the_dashboard_alone(
    new_task: Any, ray: dict[str, Any]
) -> None:
    task = new_task("ray-hangs-there")
    submission = submit(task, ray, "python3", "-c", HANGS)["submission_id"]
    hang = {"minutes": 0.1, "action": "retry"}
    target = RayTarget.from_output(ray).to_json()
    trigger = RayJobTrigger(target, submission, poll_seconds=1, hang=hang)
    event = RayJobEvent.from_json(asyncio.run(trigger.outcome()))
    assert event.end is RayEndReason.STOPPED
    assert event.hang and event.hang.ended and event.hang.stacks == ()


def test_the_cause_of_a_lost_cluster_is_the_end_of_its_slurm_job_and_not_a_refused_connection(
    slurm: Any, new_task: Any
) -> None:
    task = new_task("ray-lost")
    job = cluster_job(slurm.workspace, "ray-lost", gpus_per_node=4)
    job = job.model_copy(update={"resources": Resources(nodes=2, gpus_per_node=4, cpus_per_task=8)})
    slurm.run("ctl", ["scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test"])
    try:
        up = task.run(RayClusterOperator(task_id="up", job=job))
        submitted = submit(task, up, "sleep", "600")
        trigger = task.start(RayJobSensor(task_id="wait", submitted=submitted))

        async def with_scancel() -> Any:
            outcome = asyncio.create_task(trigger.outcome())
            await asyncio.sleep(3)
            await asyncio.to_thread(slurm.run, "ctl", ["scancel", up["job_id"]])
            return await outcome

        event = asyncio.run(with_scancel())
    finally:
        slurm.run("ctl", ["scontrol", "update", "NodeName=n1,n2", "State=RESUME"])
    with pytest.raises(RayJobFailed, match=r"lost its cluster: Slurm job \d+ .* was cancelled"):
        RayJobSensor(task_id="wait", submitted=submitted).execute_complete(task.context, event)


def test_a_cluster_that_cannot_start_leaves_no_job_behind(slurm: Any, new_task: Any, jobs: Any) -> None:
    """The settings require more GPUs than the job has."""
    task = new_task("ray-cannot")
    job = cluster_job(slurm.workspace, "ray-cannot", gpus_per_node=16)
    job = job.model_copy(update={"resources": Resources(nodes=2, gpus_per_node=1, cpus_per_task=4)})
    with pytest.raises(SlurmJobFailed) as error:
        task.run(RayClusterOperator(task_id="up", job=job))
    assert "n3" in str(error.value) or "n1" in str(error.value)
    key = task.store["llm_bridge_attempt"]["key"]
    states = slurm.run("login", ["squeue", "-h", "-o", "%j"], user="svc").stdout
    assert key not in states


def test_ray_jobs_run_at_a_site_that_forbids_port_forwarding(
    ray: dict[str, Any], slurm: Any, new_task: Any
) -> None:
    def forwarding(value: str) -> None:
        change = f"sed -i 's/^AllowTcpForwarding .*/AllowTcpForwarding {value}/' /etc/ssh/sshd_config"
        assert slurm.run("login", ["sh", "-c", change]).returncode == 0
        slurm.restart("sshd")
        now = slurm.run("login", ["grep", "^AllowTcpForwarding", "/etc/ssh/sshd_config"]).stdout
        assert now.split() == ["AllowTcpForwarding", value]

    forwarding("no")
    try:
        task = new_task("ray-no-forwarding")
        done = wait(task, submit(task, ray, "echo", "reached"))
        assert done["status"] == "SUCCEEDED"
    finally:
        forwarding("yes")
