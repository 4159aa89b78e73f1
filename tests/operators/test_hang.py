"""Jobs that hang, that only seem to, and that wait too long, on a real Slurm cluster; told to a web server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.alerts import occasions
from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.slurm.explain import explain_slurm
from llm_bridge.slurm.operators import SlurmSubmitOperator
from llm_bridge.slurm.sensors import SlurmJobSensor
from llm_bridge.slurm.triggers import SlurmJobTrigger
from tests.alerts.sinks import Posts, web_server

# The job stops itself as SIGSTOP from outside would stop it, and nothing of it goes on.
# scancel wakes it first (SIGCONT): it must not come to a good end then.
HANGS = "#!/bin/bash\necho step one\nkill -STOP $$\nsleep 600\n"
# The same in Python, where a stack says where.
HANGS_IN_PYTHON = (
    "#!/bin/bash\necho step one\nexec python3 -c 'import os, signal\n"
    "def stuck(): os.kill(os.getpid(), signal.SIGSTOP)\nstuck()'\n"
)
LIMIT = 0.1  # minutes


@pytest.fixture
def told(include: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Posts]:
    """What a web server on loopback got of alerts."""
    with web_server() as posts:
        monkeypatch.setenv("AIRFLOW_CONN_HOOK", f"http://127.0.0.1:{posts.port}")
        file = include / "alerts.yaml"
        before = file.read_text()
        file.write_text(yaml.safe_dump({"http": {"conn_id": "hook"}, "queued_after_hours": 4 / 3600}))
        yield posts
        file.write_text(before)


def submit(task: Any, script: str, **more: Any) -> SlurmJobTrigger:
    """Submit ``script``; the trigger that its task deferred to, as a triggerer would have it."""
    operator = SlurmSubmitOperator(task_id="t", cluster="test", script=script, **more)
    trigger: SlurmJobTrigger = task.start(operator)
    return trigger


async def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """What ``found`` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        await asyncio.sleep(0.2)
    raise AssertionError(f"nothing within {seconds} s")


async def followed(trigger: SlurmJobTrigger, found: Callable[[], Any], seconds: float = 60) -> Any:
    """Follow the job until ``found`` gives something; the job goes on."""
    following = asyncio.create_task(trigger.outcome())
    try:
        return await until(found, seconds)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def scancel(slurm: Any, trigger: SlurmJobTrigger) -> None:
    slurm.run("login", ["scancel", "--signal=KILL", "--full", trigger.job_id], user="svc")
    slurm.run("login", ["scancel", trigger.job_id], user="svc")


def test_a_stopped_job_is_told_with_last_line_node_and_what_its_processes_do_once_an_attempt(
    slurm: Any, task: Any, told: Any, logged: Callable[[], list[str]]
) -> None:
    trigger = submit(task, HANGS_IN_PYTHON, hang_minutes=LIMIT)
    mark = ["cat", f"{trigger.directory}/told-hang.json"]
    try:
        asyncio.run(followed(trigger, lambda: slurm.run("login", mark, user="svc").returncode == 0))
        _, said = told[0]
        assert said["occasion"] == "hang" and "has been silent for" in said["title"]
        assert said["facts"]["Last line"] == "step one" and said["facts"]["Node"].startswith("n")
        assert "nothing is done" in said["facts"]["Next"]
        assert said["links"]["On the cluster"] == trigger.directory
        assert any("T (stopped)" in line for line in said["lines"]), said["lines"]
        assert any("stuck" in line for line in said["lines"]), said["lines"]
        # A triggerer that takes the waiting over finds that it has been told.
        logged()
        heir = SlurmJobTrigger(**trigger.serialize()[1])
        asyncio.run(followed(heir, lambda: [line for line in logged() if "has been silent" in line], 40))
        time.sleep(2)
        assert len(told) == 1
    finally:
        scancel(slurm, trigger)


def test_a_hang_that_is_to_be_retried_ends_the_job_and_is_told_once_by_what_becomes_of_its_task(
    slurm: Any, task: Any, told: Any
) -> None:
    operator = SlurmSubmitOperator(
        task_id="t", cluster="test", script=HANGS, hang_minutes=LIMIT, on_hang="retry"
    )
    with pytest.raises(SlurmJobFailed) as failed:
        task.run(operator)
    hang = failed.value.event["hang"]
    assert (
        hang["ended"]
        and hang["limit_minutes"] == LIMIT
        and failed.value.event["info"]["state"] == "CANCELLED"
    )
    assert failed.value.event["notice"].startswith("hang: no output")
    assert "It hung: no output and no new step" in str(failed.value)
    assert told == []
    for callback, occasion in ((occasions.retried, "hang"), (occasions.failed, "failure")):
        callback({**task.context, "exception": failed.value})
        _, said = told.pop()
        assert said["occasion"] == occasion and said["facts"]["Class"] == "hang" and told == []
        assert "step one" in said["lines"] and any("T (stopped)" in line for line in said["lines"])
        assert said["facts"]["Next"].startswith("tries again at once, without n")
    # A triggerer that took over while the job was being ended would know it, too.
    directory, first = task.xcoms["slurm_job"]["directory"], task.xcoms["slurm_job"]["job_id"]
    event = asyncio.run(SlurmJobTrigger("test", first, directory).outcome())
    assert event["notice"] == "" and event["hang"] is None and event["reason"]["kind"] == "hang"
    heir = explain_slurm(task.context, operator, event, operator.describe(task.context))
    assert heir.diagnosis.kind == "hang" and heir.diagnosis.evidence.startswith("hang: no output")
    task.retry()
    again = SlurmSubmitOperator(task_id="t", cluster="test", script="#!/bin/bash\necho well\n")
    assert task.run(again)["job_id"] != first


def test_a_sensor_tells_of_a_stopped_job_once_and_goes_on_with_it_when_it_wakes(
    slurm: Any, task: Any, told: Any, logged: Callable[[], list[str]]
) -> None:
    script = (
        '#!/bin/bash\necho $$ > "$ATTEMPT_DIR/pid"\necho step one\n'
        'for i in $(seq 100); do sleep 0.2; [ -e "$ATTEMPT_DIR/go_on" ] && break; done\n'
        """echo step two\necho '{"answer": 42}' > "$ATTEMPT_DIR/result.json"\n"""
    )
    submitted = task.run(SlurmSubmitOperator(task_id="t", cluster="test", script=script, wait=False))
    trigger = task.start(SlurmJobSensor(task_id="wait", submitted=submitted, hang_minutes=LIMIT))

    def signal(name: str) -> None:
        where = slurm.run(
            "login", ["squeue", "-h", "-o", "%N", "-j", trigger.job_id], user="svc"
        ).stdout.strip()
        read = slurm.run("login", ["cat", f"{trigger.directory}/pid"], user="svc")
        slurm.run(where, ["kill", f"-{name}", read.stdout.strip()])

    async def scene() -> Any:
        following = asyncio.create_task(trigger.outcome())
        pid = ["test", "-s", f"{trigger.directory}/pid"]
        await until(lambda: slurm.run("login", pid, user="svc").returncode == 0)
        signal("STOP")
        await until(lambda: told)
        slurm.run("login", ["touch", f"{trigger.directory}/go_on"], user="svc")
        signal("CONT")
        return await following

    try:
        event = asyncio.run(scene())
    finally:
        scancel(slurm, trigger)
    assert event["info"]["state"] == "COMPLETED" and event["hang"] is None
    assert [said["occasion"] for _, said in told] == ["hang"] and "nothing is done" in told[0][1]["facts"][
        "Next"
    ]
    assert any("goes on: it was silent for" in line for line in logged())
    sensor = SlurmJobSensor(task_id="wait", submitted=submitted)
    assert sensor.execute_complete(task.context, event) == {"answer": 42}


def test_a_sensor_refuses_to_end_the_job_of_another_task() -> None:
    with pytest.raises(ValueError, match="on_hang='retry': SlurmJobSensor cannot submit"):
        SlurmJobSensor(task_id="wait", submitted={}, hang_minutes=5, on_hang="retry")


def test_a_job_that_is_silent_within_its_limit_is_not_called_hung(task: Any, told: Any) -> None:
    script = "#!/bin/bash\nfor i in 1 2 3 4 5; do printf .; sleep 3; done\n"
    found = task.run(SlurmSubmitOperator(task_id="t", cluster="test", script=script, hang_minutes=LIMIT))
    assert found["state"] == "COMPLETED" and told == []


def test_a_job_whose_login_node_is_away_is_not_called_hung(slurm: Any, task: Any, told: Any) -> None:
    """It is silent for longer than its limit, but most of that time nobody could have seen it speak."""
    script = "#!/bin/bash\necho one\nsleep 30\necho two\n"
    trigger = submit(task, script, hang_minutes=0.4)

    async def scene() -> Any:
        following = asyncio.create_task(trigger.outcome())
        await until(lambda: state(slurm, trigger) == "RUNNING")
        await asyncio.sleep(2)
        await asyncio.to_thread(slurm.run, "login", ["pkill", "-KILL", "sshd"])
        await asyncio.sleep(20)
        await asyncio.to_thread(slurm.start, "sshd")
        return await following

    event = asyncio.run(scene())
    assert event["info"]["state"] == "COMPLETED" and event["hang"] is None and told == []


def test_a_job_that_waits_or_is_suspended_is_not_called_hung_but_the_waiting_is_told_once(
    slurm: Any, task: Any, told: Any
) -> None:
    trigger = submit(task, "#!/bin/bash\nsleep 600\n", hang_minutes=LIMIT, sbatch={"options": {"hold": None}})
    try:

        async def scene() -> None:
            following = asyncio.create_task(trigger.outcome())
            _, said = await until(lambda: told and told[0])
            assert said["occasion"] == "queued"
            assert said["facts"]["Slurm's reason"] == "JobHeldUser"
            assert said["facts"]["Expected start"] == "Slurm does not know"
            await asyncio.sleep(8)
            slurm.run("login", ["scontrol", "release", trigger.job_id], user="svc")
            await until(lambda: state(slurm, trigger) == "RUNNING")
            slurm.run("ctl", ["scontrol", "suspend", trigger.job_id])
            await until(lambda: state(slurm, trigger) == "SUSPENDED")
            await asyncio.sleep(12)
            assert len(told) == 1
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        asyncio.run(scene())
    finally:
        slurm.run("ctl", ["scontrol", "resume", trigger.job_id])
        scancel(slurm, trigger)


def state(slurm: Any, trigger: SlurmJobTrigger) -> str:
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", trigger.job_id]
    return str(slurm.run("login", ask, user="svc").stdout.strip())
