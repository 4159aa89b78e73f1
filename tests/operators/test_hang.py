"""Jobs that hang, seem to hang or wait too long, on a real Slurm cluster; alerts go to a web server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.diagnosis.explain_slurm import explain_slurm
from llm_bridge.notifications import callbacks
from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.remote import attempt_dir
from llm_bridge.sensors.slurm import SlurmJobSensor
from llm_bridge.slurm.events import EndReason, SlurmJobEvent
from llm_bridge.task_state import TaskState
from llm_bridge.triggers.slurm import SlurmJobTrigger
from testing.sinks import Posts, web_server

# The job stops itself as SIGSTOP from outside would. scancel continues it first (SIGCONT): it must not succeed then.
HANGS = "#!/bin/bash\necho step one\nkill -STOP $$\nsleep 600\n"
# The same in Python, whose stack shows the function.
HANGS_IN_PYTHON = (
    "#!/bin/bash\necho step one\nexec python3 -c 'import os, signal\n"
    "def stuck(): os.kill(os.getpid(), signal.SIGSTOP)\nstuck()'\n"
)
LIMIT = 0.1  # minutes


@pytest.fixture
def alerts(include: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Posts]:
    """Alerts that a web server on loopback received."""
    with web_server() as posts:
        monkeypatch.setenv("AIRFLOW_CONN_HOOK", f"http://127.0.0.1:{posts.port}")
        file = include / "alerts.yaml"
        before = file.read_text()
        file.write_text(yaml.safe_dump({"http": {"conn_id": "hook"}, "queued_after_hours": 4 / 3600}))
        yield posts
        file.write_text(before)


def submit(task: Any, script: str, **more: Any) -> SlurmJobTrigger:
    """Submit ``script``; return the trigger that its task deferred to."""
    operator = SlurmSubmitOperator(task_id="t", cluster="test", script=script, **more)
    trigger: SlurmJobTrigger = task.start(operator)
    return trigger


async def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first true value of ``found``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        await asyncio.sleep(0.2)
    raise AssertionError(f"nothing within {seconds} s")


async def followed(trigger: SlurmJobTrigger, found: Callable[[], Any], seconds: float = 60) -> Any:
    """Follow the job until ``found`` returns a true value; the job runs on."""
    following = asyncio.create_task(trigger.outcome())
    try:
        return await until(found, seconds)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def scancel(slurm: Any, trigger: SlurmJobTrigger) -> None:
    slurm.run("login", ["scancel", "--signal=KILL", "--full", trigger.job_id], user="svc")
    slurm.run("login", ["scancel", trigger.job_id], user="svc")


def test_the_alert_of_a_stopped_job_has_last_line_node_and_stacks_and_is_sent_once_per_attempt(
    slurm: Any, task: Any, alerts: Any, logged: Callable[[], list[str]]
) -> None:
    trigger = submit(task, HANGS_IN_PYTHON, hang_minutes=LIMIT)
    mark = ["cat", f"{trigger.directory}/{attempt_dir.notified('hang')}"]
    try:
        asyncio.run(followed(trigger, lambda: slurm.run("login", mark, user="svc").returncode == 0))
        _, alert = alerts[0]
        assert alert["occasion"] == "hang"
        assert "may hang: no output and no new step for" in alert["title"]
        assert alert["facts"]["Last line"] == "step one" and alert["facts"]["Node"].startswith("n")
        assert "nothing is cancelled" in alert["facts"]["Next"]
        assert alert["links"]["On the cluster"] == trigger.directory
        assert any("T (stopped)" in line for line in alert["lines"]), alert["lines"]
        assert any("stuck" in line for line in alert["lines"]), alert["lines"]
        # Another triggerer that takes over finds that the alert was sent.
        logged()
        heir = SlurmJobTrigger(**trigger.serialize()[1])
        asyncio.run(followed(heir, lambda: [line for line in logged() if "may hang" in line], 40))
        time.sleep(2)
        assert len(alerts) == 1
    finally:
        scancel(slurm, trigger)


def test_a_hang_that_is_to_be_retried_ends_the_job_and_causes_one_alert_by_its_task(
    slurm: Any, task: Any, alerts: Any
) -> None:
    operator = SlurmSubmitOperator(
        task_id="t", cluster="test", script=HANGS, hang_minutes=LIMIT, on_hang="retry"
    )
    with pytest.raises(SlurmJobFailed) as failed:
        task.run(operator)
    event = failed.value.event
    assert event.end is EndReason.HUNG and event.hang and event.hang.ended
    assert event.info and event.info.state == "CANCELLED"
    assert event.notice.startswith("hang: no output")
    assert "The job hung: no output and no new step" in str(failed.value)
    assert alerts == []
    for callback, occasion in ((callbacks.retried, "hang"), (callbacks.failed, "failure")):
        callback({**task.context, "exception": failed.value})
        _, alert = alerts.pop()
        assert alert["occasion"] == occasion and alert["facts"]["Class"] == "hang" and alerts == []
        assert "step one" in alert["lines"] and any("T (stopped)" in line for line in alert["lines"])
        assert alert["facts"]["Next"].startswith("retries at once without n")
    # A triggerer that takes over while the job is being ended also reports the hang.
    directory, first = task.xcoms["slurm_job"]["directory"], task.xcoms["slurm_job"]["job_id"]
    event = SlurmJobEvent.from_json(asyncio.run(SlurmJobTrigger("test", first, directory).outcome()))
    assert event.notice == "" and event.hang is None
    assert event.reason and event.reason.kind == "hang"
    state, job = TaskState.from_context(task.context), operator.build_job(task.context)
    heir = asyncio.run(explain_slurm(state, event, job, retry_delay=timedelta(seconds=60)))
    assert heir.diagnosis.kind == "hang" and heir.diagnosis.evidence.startswith("hang: no output")
    task.retry()
    again = SlurmSubmitOperator(task_id="t", cluster="test", script="#!/bin/bash\necho well\n")
    assert task.run(again)["job_id"] != first


def test_a_sensor_sends_one_alert_of_a_stopped_job_and_continues_when_the_job_does(
    slurm: Any, task: Any, alerts: Any, logged: Callable[[], list[str]]
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
        await until(lambda: alerts)
        slurm.run("login", ["touch", f"{trigger.directory}/go_on"], user="svc")
        signal("CONT")
        return await following

    try:
        event = asyncio.run(scene())
    finally:
        scancel(slurm, trigger)
    ended = SlurmJobEvent.from_json(event)
    assert ended.info and ended.info.state == "COMPLETED" and ended.hang is None
    assert [alert["occasion"] for _, alert in alerts] == ["hang"]
    assert "nothing is cancelled" in alerts[0][1]["facts"]["Next"]
    assert any("no longer hangs: new output after" in line for line in logged())
    sensor = SlurmJobSensor(task_id="wait", submitted=submitted)
    assert sensor.execute_complete(task.context, event) == {"answer": 42}


def test_a_sensor_refuses_to_end_the_job_of_another_task() -> None:
    with pytest.raises(ValueError, match="on_hang='retry': SlurmJobSensor cannot submit"):
        SlurmJobSensor(task_id="wait", submitted={}, hang_minutes=5, on_hang="retry")


def test_a_job_that_is_silent_for_less_than_its_limit_does_not_count_as_hung(task: Any, alerts: Any) -> None:
    script = "#!/bin/bash\nfor i in 1 2 3 4 5; do printf .; sleep 3; done\n"
    found = task.run(SlurmSubmitOperator(task_id="t", cluster="test", script=script, hang_minutes=LIMIT))
    assert found["state"] == "COMPLETED" and alerts == []


def test_a_job_does_not_count_as_hung_while_its_login_node_is_unreachable(
    slurm: Any, task: Any, alerts: Any
) -> None:
    """It is silent for longer than its limit, but most of that time its output could not be read."""
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

    event = SlurmJobEvent.from_json(asyncio.run(scene()))
    assert event.info and event.info.state == "COMPLETED" and event.hang is None and alerts == []


def test_a_job_that_waits_or_is_suspended_does_not_count_as_hung_and_its_wait_causes_one_alert(
    slurm: Any, task: Any, alerts: Any
) -> None:
    trigger = submit(task, "#!/bin/bash\nsleep 600\n", hang_minutes=LIMIT, sbatch={"options": {"hold": None}})
    try:

        async def scene() -> None:
            following = asyncio.create_task(trigger.outcome())
            _, alert = await until(lambda: alerts and alerts[0])
            assert alert["occasion"] == "queued"
            assert alert["facts"]["Slurm's reason"] == "JobHeldUser"
            assert alert["facts"]["Expected start"] == "unknown"
            await asyncio.sleep(8)
            slurm.run("login", ["scontrol", "release", trigger.job_id], user="svc")
            await until(lambda: state(slurm, trigger) == "RUNNING")
            slurm.run("ctl", ["scontrol", "suspend", trigger.job_id])
            await until(lambda: state(slurm, trigger) == "SUSPENDED")
            await asyncio.sleep(12)
            assert len(alerts) == 1
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        asyncio.run(scene())
    finally:
        slurm.run("ctl", ["scontrol", "resume", trigger.job_id])
        scancel(slurm, trigger)


def state(slurm: Any, trigger: SlurmJobTrigger) -> str:
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", trigger.job_id]
    return str(slurm.run("login", ask, user="svc").stdout.strip())
