"""SlurmSubmitOperator, SlurmJobSensor and SlurmCancelOperator against a real cluster."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from llm_bridge.config.errors import ConfigError
from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.slurm.away import ClusterReachableTrigger
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.operators import SlurmSubmitOperator
from llm_bridge.slurm.sensors import SlurmJobSensor
from llm_bridge.slurm.teardown import SlurmCancelOperator


def submit(script: str, task_id: str = "t", **options: Any) -> SlurmSubmitOperator:
    return SlurmSubmitOperator(task_id=task_id, cluster="test", script=f"#!/bin/bash\n{script}\n", **options)


def until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.3)


def test_a_two_node_job_runs_where_it_was_asked_to_and_gives_its_result_back(task: Any, logged: Any) -> None:
    script = (
        "srun bash -c 'echo at $SLURMD_NODENAME with $CUDA_VISIBLE_DEVICES'\n"
        """echo '{"answer": 42}' > "$ATTEMPT_DIR/result.json" """
    )
    done = task.run(submit(script, sbatch={"nodes": 2, "gpus_per_node": 2}))
    assert (done["state"], done["result"]) == ("COMPLETED", {"answer": 42})
    assert done["queue_s"] >= 0 and done["run_s"] >= 0
    lines = logged()
    assert "at n1 with 0,1" in lines and "at n2 with 0,1" in lines


def test_a_failed_job_is_told_with_state_exit_code_and_last_lines(task: Any) -> None:
    with pytest.raises(SlurmJobFailed) as error:
        task.run(submit("echo the reason >&2\nexit 3"))
    text = str(error.value)
    assert "FAILED, exit code 3" in text and "| the reason" in text and "output.log" in text


def test_a_job_that_somebody_cancels_is_told_as_cancelled(task: Any, slurm: Any) -> None:
    trigger = task.start(submit("sleep 60"))
    slurm.run("ctl", ["scancel", trigger.job_id])
    with pytest.raises(SlurmJobFailed, match="was cancelled: CANCELLED"):
        submit("x").execute_complete(task.context, asyncio.run(trigger.outcome()))


def test_the_output_arrives_in_order_and_no_line_twice(task: Any, logged: Any) -> None:
    task.run(submit("for i in $(seq 200); do echo line $i; [ $((i % 50)) = 0 ] && sleep 1; done"))
    lines = [line for line in logged() if line.startswith("line ")]
    assert lines == [f"line {i}" for i in range(1, 201)]


def test_a_retry_while_the_job_runs_follows_the_same_job(task: Any, jobs: Any) -> None:
    first = task.start(submit("sleep 2"))
    again = task.start(submit("sleep 2"))
    assert again.job_id == first.job_id
    assert task.run(submit("sleep 2"))["job_id"] == first.job_id
    assert jobs(task.store.values["llm_bridge_attempt"]["key"]) == [first.job_id]


def test_a_retry_after_the_job_ended_well_returns_without_a_new_job(task: Any) -> None:
    first = task.run(submit("true"))
    assert task.run(submit("true"))["job_id"] == first["job_id"]


def test_a_retry_after_the_job_failed_makes_the_next_attempt(task: Any) -> None:
    with pytest.raises(SlurmJobFailed):
        task.run(submit("exit 1"))
    done = task.run(submit("true"))
    assert done["directory"].endswith("/attempt-2")


def test_a_worker_that_dies_after_sbatch_does_not_lead_to_a_second_job(
    task: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of sbatch never reached Airflow: the retry knows the attempt, but no id."""
    original = SlurmClient.submit

    async def dies(self: Any, *arguments: Any, **options: Any) -> Any:
        await original(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SlurmClient, "submit", dies)
        with pytest.raises(KeyboardInterrupt):
            submit("sleep 3").execute(task.context)
    attempt = task.store.values["llm_bridge_attempt"]
    assert attempt["job_id"] is None
    trigger = task.start(submit("sleep 3"))
    assert jobs(attempt["key"]) == [trigger.job_id]


def test_an_id_that_was_never_written_on_the_cluster_is_found_by_the_jobs_name(
    task: Any, jobs: Any, slurm: Any
) -> None:
    """The shell on the login node died between sbatch and writing the id down."""
    trigger = task.start(submit("sleep 20"))
    (slurm.workspace / trigger.directory / "job_id").unlink()
    task.store.values["llm_bridge_attempt"]["job_id"] = None
    again = task.start(submit("sleep 20"))
    assert again.job_id == trigger.job_id
    assert jobs(task.store.values["llm_bridge_attempt"]["key"]) == [trigger.job_id]
    slurm.run("ctl", ["scancel", trigger.job_id])


def test_a_cleared_task_cancels_the_old_job_before_the_new_one(task: Any, slurm: Any) -> None:
    old = task.start(submit("sleep 60"))
    # One that only begins when it is given up ends by itself (batch.sh.j2).
    until((slurm.workspace / old.directory / "started.json").exists)
    task.clear()
    done = task.run(submit("true"))
    assert done["job_id"] != old.job_id
    state = slurm.run("login", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", old.job_id], user="svc").stdout
    assert state.strip() == "CANCELLED"


def test_the_tasks_own_time_limit_cancels_the_job(task: Any, slurm: Any) -> None:
    from datetime import timedelta

    trigger = task.start(submit("sleep 60", execution_timeout=timedelta(seconds=2)))

    async def first() -> Any:
        return await anext(trigger.run())

    event = asyncio.run(first()).payload
    with pytest.raises(SlurmJobFailed, match="time limit"):
        submit("x").execute_complete(task.context, event)
    state = slurm.run(
        "login", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", trigger.job_id], user="svc"
    ).stdout
    assert state.strip() == "CANCELLED"


def test_no_event_comes_within_five_seconds_of_deferring(task: Any) -> None:
    """Airflow 3.3.2 fails a task whose trigger fires at once (airflow#67287)."""
    trigger = task.start(submit("true"))
    began = time.monotonic()

    async def first() -> Any:
        return await anext(trigger.run())

    asyncio.run(first())
    assert time.monotonic() - began >= 5


def test_a_sensor_waits_for_another_tasks_job(task: Any) -> None:
    submitted = task.run(submit("""sleep 1; echo '{"a": 1}' > "$ATTEMPT_DIR/result.json" """, wait=False))
    assert set(submitted) == {"job_id", "cluster", "directory"}
    sensor = SlurmJobSensor(task_id="s", submitted=submitted)
    assert task.run(sensor) == {"a": 1}


def test_many_waiting_tasks_cost_one_command_a_tick(new_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten triggers in one event loop, as in the triggerer."""
    from llm_bridge.transport import SshTransport

    triggers = [new_task(f"many-{i}").start(submit("sleep 4")) for i in range(10)]
    commands: list[str] = []
    original = SshTransport.run

    async def counting(self: Any, argv: Any, **options: Any) -> Any:
        commands.append(argv[0])
        return await original(self, argv, **options)

    monkeypatch.setattr(SshTransport, "run", counting)

    async def follow() -> list[Any]:
        return await asyncio.gather(*(trigger.outcome() for trigger in triggers))

    events = asyncio.run(follow())
    assert {event["info"]["state"] for event in events} == {"COMPLETED"}
    # The ends come within a few seconds; waiting costs the same for one and for ten.
    assert commands.count("squeue") <= 12 and set(commands) == {"squeue"}


def test_the_teardown_cancels_every_job_of_a_stage_and_is_happy_with_none(task: Any, slurm: Any) -> None:
    trigger = task.start(submit("sleep 60"))
    stage = trigger.directory.rsplit("/", 1)[0]
    down = SlurmCancelOperator(task_id="down", stage=lambda context: ("test", stage))
    assert down.execute(task.context) == [trigger.job_id]
    assert down.execute(task.context) == [trigger.job_id]
    nothing = SlurmCancelOperator(task_id="down", stage=lambda context: ("test", f"{stage}-not-there"))
    assert nothing.execute(task.context) == []


@pytest.mark.parametrize(
    ("sbatch", "said"),
    [
        ({"partition": "nope"}, "invalid partition"),
        ({"gpus_per_node": 9}, "Requested node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_words_and_nothing_is_submitted(
    task: Any, jobs: Any, sbatch: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        submit("true", sbatch=sbatch).execute(task.context)
    assert "include/clusters/test.yaml" in str(error.value)
    assert jobs(task.store.values["llm_bridge_attempt"]["key"]) == []


def test_a_job_that_says_that_a_retry_cannot_help_is_not_tried_again(task: Any) -> None:
    script = """echo '{"reason": "no such column", "retry": false}' > "$ATTEMPT_DIR/reason.json"; exit 1"""
    with pytest.raises(AirflowFailException, match="It says: no such column"):
        task.run(submit(script))


def test_a_slurmctld_that_is_away_is_waited_for_without_a_retry_and_then_gets_one_job(
    task: Any, slurm: Any, jobs: Any
) -> None:
    slurm.stop("slurmctld")
    try:
        trigger = task.start(submit("true"))
        assert isinstance(trigger, ClusterReachableTrigger)
    finally:
        slurm.start("slurmctld")
        slurm.wait_for_nodes()
    asyncio.run(anext(trigger.run()))
    done = task.run(submit("true"))
    assert jobs(task.store.values["llm_bridge_attempt"]["key"]) == [done["job_id"]]
    assert done["directory"].endswith("/attempt-1")


@pytest.mark.parametrize(("state", "found"), [("failed", "CANCELLED"), ("running", "RUNNING")])
def test_a_worker_that_is_told_to_stop_cancels_its_job_only_if_the_task_was_marked(
    task: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch, state: str, found: str
) -> None:
    """Airflow calls on_kill from a signal handler, so the operator's own event loop is running in that thread.

    What Airflow's API says of the task is given here: it needs a supervisor. tests/chaos asks the real one.
    """
    monkeypatch.setattr("llm_bridge.slurm.on_kill.state_of_task", lambda ti: state)
    operator = submit("sleep 60", wait=False)
    job_id = operator.execute(task.context)["job_id"]
    wait_until_running(slurm, job_id)

    async def signal_handler() -> None:
        operator.on_kill()

    asyncio.run(signal_handler())
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    assert slurm.run("login", ask, user="svc").stdout.strip() == found
    slurm.run("ctl", ["scancel", job_id])


def test_a_character_that_two_looks_cut_in_half_arrives_whole(
    task: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_bridge.slurm.flood.LOOK_BYTES", 100)
    text = "グ" * 100
    task.run(submit(f"echo {text}"))
    assert "".join(line for line in logged() if "グ" in line) == text


def wait_until_running(slurm: Any, job_id: str) -> None:
    deadline = time.monotonic() + 30
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    while slurm.run("login", ask, user="svc").stdout.strip() != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.2)


BLAME = """echo '{"reason": "preflight: n1: its disk is full", "nodes": ["n1"]}' > "$ATTEMPT_DIR/reason.json"; exit 1"""


def test_a_retry_leaves_the_node_out_that_the_job_blamed_and_a_clear_uses_it_again(
    task: Any, logged: Any
) -> None:
    where = "echo ran on $SLURM_JOB_NODELIST"
    with pytest.raises(SlurmJobFailed, match="n1: its disk is full"):
        task.run(submit(f"{where}; {BLAME}"))
    task.run(submit(where))
    assert [line for line in logged() if line.startswith("ran on")] == ["ran on n1", "ran on n2"]
    task.clear()
    task.run(submit(where))
    assert "ran on n1" in logged()


def test_a_node_is_not_left_out_where_the_job_needs_all_of_them(task: Any, logged: Any) -> None:
    every = {"nodes": 4}
    with pytest.raises(SlurmJobFailed):
        task.run(submit(BLAME, sbatch=every))
    assert task.run(submit("true", sbatch=every))["state"] == "COMPLETED"
    assert any("cannot run without it" in line for line in logged())


def test_a_job_whose_id_slurmctld_gave_to_another_after_a_crash_counts_as_lost(task: Any, slurm: Any) -> None:
    trigger = task.start(submit("sleep 60"))
    other = trigger.directory
    trigger.directory = other.replace("attempt-1", "attempt-2")
    event = asyncio.run(trigger.outcome())
    assert event["info"] is None and "another job has its id" in event["notice"]
    trigger.directory = other
    slurm.run("ctl", ["scancel", trigger.job_id])


def test_a_job_that_slurm_holds_since_it_could_not_start_it_is_let_go(
    task: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch, logged: Any
) -> None:
    monkeypatch.setattr("llm_bridge.slurm.watcher.HELD", "JobHeldUser")
    trigger = task.start(submit("echo at last", sbatch={"options": {"hold": None}}))
    assert asyncio.run(trigger.outcome())["info"]["state"] == "COMPLETED"
    assert "at last" in logged()


def test_a_cancelled_job_that_slurm_starts_again_ends_at_once(
    task: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slurmctld that crashes right after the cancel forgets it and starts the job again (seen in chaos)."""
    trigger = task.start(submit("touch ../again; sleep 60"))

    async def told(trigger: Any) -> str:
        return "failed"

    monkeypatch.setattr("llm_bridge.slurm.triggers.task_state", told)
    user_code = f"{trigger.directory.rpartition('/')[0]}/again"
    until(lambda: slurm.run("login", ["test", "-e", user_code], user="svc").returncode == 0)
    asyncio.run(trigger.on_kill())
    state = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", trigger.job_id]
    assert slurm.run("login", state, user="svc").stdout.strip() == "CANCELLED"
    slurm.run("login", ["rm", user_code], user="svc")
    assert slurm.run("ctl", ["scontrol", "requeue", trigger.job_id]).returncode == 0
    until(lambda: slurm.run("login", state, user="svc").stdout.strip() == "COMPLETED")
    assert slurm.run("login", ["test", "-e", user_code], user="svc").returncode != 0
