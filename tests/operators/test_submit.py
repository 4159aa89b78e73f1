"""SlurmSubmitOperator, SlurmJobSensor and SlurmCancelOperator on a real cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.exceptions import SlurmJobFailed, SlurmJobPermanentError
from llm_bridge.operators.slurm import SlurmCancelOperator, SlurmSubmitOperator
from llm_bridge.remote import transport
from llm_bridge.remote.ssh_transport import SshTransport
from llm_bridge.sensors.slurm import SlurmJobSensor
from llm_bridge.slurm import poller, submission
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.events import EndReason, SlurmJobEvent
from llm_bridge.slurm.spec import Resources, SlurmJob
from llm_bridge.slurm.status import Phase
from llm_bridge.triggers.reachability import ClusterReachableTrigger
from testing.local_cluster import LocalCluster
from testing.waiting import until


def submit(script: str, task_id: str = "t", **options: Any) -> SlurmSubmitOperator:
    return SlurmSubmitOperator(task_id=task_id, cluster="test", script=f"#!/bin/bash\n{script}\n", **options)


def test_a_two_node_job_runs_on_both_nodes_and_returns_its_result(task: Any, logged: Any) -> None:
    script = (
        "srun bash -c 'echo at $SLURMD_NODENAME with $CUDA_VISIBLE_DEVICES'\n"
        """echo '{"answer": 42}' > "$ATTEMPT_DIR/result.json" """
    )
    done = task.run(submit(script, sbatch={"nodes": 2, "gpus_per_node": 2}))
    assert (done["state"], done["result"]) == ("COMPLETED", {"answer": 42})
    assert done["queue_s"] >= 0 and done["run_s"] >= 0
    lines = logged()
    assert "at n1 with 0,1" in lines and "at n2 with 0,1" in lines


def test_the_error_of_a_failed_job_has_state_exit_code_and_last_lines(task: Any) -> None:
    with pytest.raises(SlurmJobFailed) as error:
        task.run(submit("echo the reason >&2\nexit 3"))
    text = str(error.value)
    assert "FAILED, exit code 3" in text and "| the reason" in text and "output.log" in text


def test_the_error_of_a_job_that_a_user_cancels_has_its_state(task: Any, slurm: Any) -> None:
    trigger = task.start(submit("sleep 60"))
    slurm.run("ctl", ["scancel", trigger.job_id])
    with pytest.raises(SlurmJobFailed, match="was cancelled: CANCELLED"):
        submit("x").execute_complete(task.context, asyncio.run(trigger.outcome()))


def test_the_output_arrives_in_order_and_no_line_twice(task: Any, logged: Any) -> None:
    task.run(submit("for i in $(seq 200); do echo line $i; [ $((i % 50)) = 0 ] && sleep 1; done"))
    lines = [line for line in logged() if line.startswith("line ")]
    assert lines == [f"line {i}" for i in range(1, 201)]


def test_a_login_shell_that_greets_and_sets_slurms_variables_changes_nothing(
    task: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the start files of a site's or a user's shell."""
    foreign = ["SBATCH_EXPORT=NONE", "SBATCH_TIMELIMIT=1", "SBATCH_PARTITION=none", "SLURM_MEM_PER_CPU=100"]
    foreign += [
        "SQUEUE_PARTITION=none",
        "SQUEUE_STATES=PENDING",
        "SACCT_FORMAT=user",
        "SLURM_TIME_FORMAT=relative",
    ]
    original = transport.CleanCommand.argv

    def after_start_files(self: Any, argv: Any) -> list[str]:
        shell = ["env", *foreign, "sh", "-c", 'echo "Welcome, 2 news"; exec "$@"', "sh"]
        return [*shell, *original(self, argv)]

    monkeypatch.setattr(transport.CleanCommand, "argv", after_start_files)
    done = task.run(submit("srun bash -c 'echo srun passes $ATTEMPT_DIR on'; sleep 5"))
    assert done["state"] == "COMPLETED" and done["run_s"] >= 5
    assert f"srun passes {done['directory']} on" in logged()


def test_a_retry_while_the_job_runs_follows_the_same_job(task: Any, jobs: Any) -> None:
    first = task.start(submit("sleep 2"))
    again = task.start(submit("sleep 2"))
    assert again.job_id == first.job_id
    assert task.run(submit("sleep 2"))["job_id"] == first.job_id
    assert jobs(task.store["llm_bridge_attempt"]["key"]) == [first.job_id]


def test_a_retry_after_the_job_succeeded_returns_without_a_new_job(task: Any) -> None:
    first = task.run(submit("true"))
    assert task.run(submit("true"))["job_id"] == first["job_id"]


def test_a_retry_after_the_job_failed_submits_the_next_attempt(task: Any) -> None:
    with pytest.raises(SlurmJobFailed):
        task.run(submit("exit 1"))
    done = task.run(submit("true"))
    assert done["directory"].endswith("/attempt-2")


def test_a_worker_that_dies_after_sbatch_does_not_lead_to_a_second_job(
    task: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of sbatch never reached Airflow: the store has the attempt without a job id."""
    original = SlurmClient.submit

    async def dies(self: Any, *arguments: Any, **options: Any) -> Any:
        await original(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SlurmClient, "submit", dies)
        with pytest.raises(KeyboardInterrupt):
            submit("sleep 3").execute(task.context)
    attempt = task.store["llm_bridge_attempt"]
    assert attempt["job_id"] is None
    trigger = task.start(submit("sleep 3"))
    assert jobs(attempt["key"]) == [trigger.job_id]


def test_an_id_that_was_never_written_on_the_cluster_is_found_by_the_jobs_name(
    task: Any, jobs: Any, slurm: Any
) -> None:
    """The helper on the login node died between sbatch and recording the id."""
    trigger = task.start(submit("sleep 20"))
    (slurm.workspace / trigger.directory / "job_id").unlink()
    task.store["llm_bridge_attempt"]["job_id"] = None
    again = task.start(submit("sleep 20"))
    assert again.job_id == trigger.job_id
    assert jobs(task.store["llm_bridge_attempt"]["key"]) == [trigger.job_id]
    slurm.run("ctl", ["scancel", trigger.job_id])


def test_a_cleared_task_cancels_the_old_job_before_the_new_one(task: Any, slurm: Any) -> None:
    old = task.start(submit("sleep 60"))
    # A job that starts after its attempt was closed ends by itself (batch.sh.j2).
    until((slurm.workspace / old.directory / "started.json").exists)
    task.clear()
    done = task.run(submit("true"))
    assert done["job_id"] != old.job_id
    state = slurm.run("login", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", old.job_id], user="svc").stdout
    assert state.strip() == "CANCELLED"


def test_the_tasks_own_time_limit_cancels_the_job(task: Any, slurm: Any) -> None:
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


def test_no_event_comes_within_five_seconds_of_deferring(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow 3.3.2 fails a task whose trigger fires at once (airflow#67287)."""
    monkeypatch.setattr(
        "llm_bridge.triggers.base.MIN_EVENT_DELAY_SECONDS", 5.0
    )  # conftest.py sets it to 0 for all other tests
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
    triggers = [new_task(f"many-{i}").start(submit("sleep 4")) for i in range(10)]
    commands: list[str] = []
    original = SshTransport.run

    async def counting(self: Any, argv: Any, **options: Any) -> Any:
        commands.append(argv[0])
        return await original(self, argv, **options)

    monkeypatch.setattr(SshTransport, "run", counting)

    async def follow() -> list[Any]:
        return await asyncio.gather(*(trigger.outcome() for trigger in triggers))

    events = [SlurmJobEvent.from_json(event) for event in asyncio.run(follow())]
    assert {event.info.state for event in events if event.info} == {"COMPLETED"}
    assert len(events) == 10 and all(event.succeeded for event in events)
    # The ends come within a few seconds; waiting costs the same for one and for ten.
    assert commands.count("squeue") <= 12 and set(commands) == {"squeue"}


def test_forty_submissions_at_once_take_one_connection_and_one_python(
    slurm: Any, new_task: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as sshd's MaxStartups and MaxSessions refuse."""
    started: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(SshTransport, name)

        def counting(self: Any, *arguments: Any, **options: Any) -> Any:
            started.append(name)
            return original(self, *arguments, **options)

        return counting

    for name in ("_log_in", "session", "run"):
        monkeypatch.setattr(SshTransport, name, counted(name))
    run = f"many-{time.time_ns()}"
    job = SlurmJob(
        cluster="test",
        directory=f"{slurm.workspace}/{run}",
        script="#!/bin/bash\ntrue\n",
        resources=Resources(options={"begin": "now+1hour"}),
    )
    keys = [f"llmb-{run}-{n}" for n in range(40)]

    async def submit_all() -> list[str]:
        async with open_client("test") as client:
            resolved = job.resolve(client.cluster)
            owner = {"dag_id": "d", "run_id": run, "task_id": "t", "map_index": -1}
            return [
                answer.job_id
                for answer in await asyncio.gather(
                    *(
                        client.submit(resolved, f"{job.directory}/{key}/attempt-1", key, owner, {})
                        for key in keys
                    )
                )
            ]

    ids = asyncio.run(submit_all())
    assert started == ["session", "_log_in"] and len(set(ids)) == 40
    assert sorted(jobs(run)) == sorted(ids)
    slurm.run("ctl", ["scancel", *ids])


def test_the_teardown_cancels_every_job_of_a_stage_and_accepts_a_stage_without_jobs(
    task: Any, slurm: Any
) -> None:
    trigger = task.start(submit("sleep 60"))
    stage = trigger.directory.rsplit("/", 1)[0]
    down = SlurmCancelOperator(task_id="down", stage=lambda context: ("test", stage))
    assert down.execute(task.context) == [trigger.job_id]
    assert down.execute(task.context) == [trigger.job_id]
    nothing = SlurmCancelOperator(task_id="down", stage=lambda context: ("test", f"{stage}-not-there"))
    assert nothing.execute(task.context) == []


@pytest.fixture
def epilog(slurm: LocalCluster) -> Iterator[Path]:
    """A site's epilog that holds every job in COMPLETING while this file exists."""
    hold, script = slurm.workspace / "epilog-holds", slurm.workspace / "epilog.sh"
    script.write_text(f"#!/bin/sh\nwhile [ -e {hold} ]; do sleep 0.2; done\n")
    script.chmod(0o755)
    file = slurm.settings.etc_dir / "slurm" / "slurm.conf"
    before = file.read_text()
    file.write_text(f"{before}\nEpilog={script}\n")
    hold.touch()
    slurm.run("ctl", ["scontrol", "reconfigure"])
    try:
        yield hold
    finally:
        hold.unlink(missing_ok=True)
        file.write_text(before)
        slurm.run("ctl", ["scontrol", "reconfigure"])


def test_a_job_whose_epilog_runs_on_is_ended_for_the_teardown_and_waited_for_without_a_retry_after_a_clear(
    task: Any, slurm: LocalCluster, epilog: Path, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waits, of 120 s each, are shortened; a health check of GPUs in an epilog takes minutes."""
    trigger = task.start(submit("sleep 600"))
    stage = trigger.directory.rsplit("/", 1)[0]
    state = ["squeue", "-h", "-o", "%T", "-j", trigger.job_id]
    until(lambda: slurm.run("login", state, user="svc").stdout.strip() == "RUNNING", what="the job's start")
    down = SlurmCancelOperator(task_id="down", stage=lambda context: ("test", stage), wait_seconds=6)
    assert down.execute(task.context) == [trigger.job_id]
    lines = logged()
    assert any(f"Slurm job {trigger.job_id} is still COMPLETING 6 s after scancel" in line for line in lines)
    assert slurm.run("login", state, user="svc").stdout.strip() == "COMPLETING"

    monkeypatch.setattr(submission, "CANCEL_CLEARED_SECONDS", 2.0)
    task.clear()
    with pytest.raises(TaskDeferred) as deferred:
        submit("true").execute(task.context)
    assert isinstance(deferred.value.trigger, ClusterReachableTrigger)
    assert f"Slurm job {trigger.job_id} is still COMPLETING after scancel" in deferred.value.trigger.reason
    epilog.unlink()
    done = task.run(submit("true"))
    assert done["state"] == "COMPLETED" and done["job_id"] != trigger.job_id


@pytest.mark.parametrize(
    ("sbatch", "message"),
    [
        ({"partition": "nope"}, "invalid partition"),
        ({"gpus_per_node": 9}, "Requested node configuration is not available"),
    ],
)
def test_the_error_of_a_refused_job_quotes_slurm_and_nothing_is_submitted(
    task: Any, jobs: Any, sbatch: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        submit("true", sbatch=sbatch).execute(task.context)
    assert "include/clusters/test.yaml" in str(error.value)
    assert jobs(task.store["llm_bridge_attempt"]["key"]) == []


def test_a_job_that_reports_that_a_retry_cannot_help_is_not_retried(task: Any) -> None:
    script = """echo '{"reason": "no such column", "retry": false}' > "$ATTEMPT_DIR/reason.json"; exit 1"""
    with pytest.raises(SlurmJobPermanentError, match="The job's own reason: no such column"):
        task.run(submit(script))


def test_a_task_waits_for_an_unavailable_slurmctld_without_a_retry_and_then_submits_one_job(
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
    assert jobs(task.store["llm_bridge_attempt"]["key"]) == [done["job_id"]]
    assert done["directory"].endswith("/attempt-1")


@pytest.mark.parametrize(("state", "found"), [("failed", "CANCELLED"), ("running", "RUNNING")])
def test_a_worker_that_is_stopped_cancels_its_job_only_if_the_task_was_marked(
    task: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch, state: str, found: str
) -> None:
    """Airflow calls on_kill from a signal handler, so the operator's own event loop is running in that thread.

    The state in Airflow's API is a stand-in, because the API needs a supervisor; tests/chaos uses the real one.
    """
    monkeypatch.setattr("llm_bridge.operators.base.state_of_task", lambda ti: state)
    operator = submit("sleep 60", wait=False)
    job_id = operator.execute(task.context)["job_id"]
    wait_until_running(slurm, job_id)

    async def signal_handler() -> None:
        operator.on_kill()

    asyncio.run(signal_handler())
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    assert slurm.run("login", ask, user="svc").stdout.strip() == found
    slurm.run("ctl", ["scancel", job_id])


def test_a_character_that_is_split_between_two_polls_arrives_whole(
    task: Any, logged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_bridge.slurm.rate_limit.MAX_POLL_BYTES", 100)
    text = "".join(
        f"グ{number}" for number in range(100)
    )  # no two parts are equal: repeated lines are counted
    task.run(submit(f"echo {text}"))
    assert "".join(line for line in logged() if "グ" in line) == text


def wait_until_running(slurm: Any, job_id: str) -> None:
    deadline = time.monotonic() + 30
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    while slurm.run("login", ask, user="svc").stdout.strip() != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.2)


BLAME = """echo '{"reason": "preflight: n1: its disk is full", "nodes": ["n1"]}' > "$ATTEMPT_DIR/reason.json"; exit 1"""


def test_a_retry_excludes_the_node_that_the_job_blamed_and_a_clear_uses_it_again(
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


def test_a_node_is_not_excluded_if_the_job_needs_all_of_them(task: Any, logged: Any) -> None:
    every = {"nodes": 4}
    with pytest.raises(SlurmJobFailed):
        task.run(submit(BLAME, sbatch=every))
    assert task.run(submit("true", sbatch=every))["state"] == "COMPLETED"
    assert any("Slurm refuses the job without" in line for line in logged())


def test_a_job_whose_id_slurmctld_gave_to_another_after_a_crash_counts_as_lost(task: Any, slurm: Any) -> None:
    trigger = task.start(submit("sleep 60"))
    trigger.directory = trigger.directory.replace("attempt-1", "attempt-2")
    event = SlurmJobEvent.from_json(asyncio.run(trigger.outcome()))
    assert event.end is EndReason.FORGOTTEN and event.info is None
    assert "another job has its id" in event.notice
    slurm.run("ctl", ["scancel", trigger.job_id])


def test_a_job_that_slurm_holds_after_a_failed_launch_is_released(
    task: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch, logged: Any
) -> None:
    monkeypatch.setattr("llm_bridge.slurm.poller.HELD", "JobHeldUser")
    trigger = task.start(submit("echo at last", sbatch={"options": {"hold": None}}))
    event = SlurmJobEvent.from_json(asyncio.run(trigger.outcome()))
    assert event.info and event.info.state == "COMPLETED"
    lines = logged()
    assert "at last" in lines and any("and holds it; released it" in line for line in lines)


def test_a_cancelled_job_that_slurm_starts_again_ends_at_once(
    task: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slurmctld that crashes right after the cancel forgets it and starts the job again (seen in chaos)."""
    trigger = task.start(submit("touch ../again; sleep 60"))

    async def failed(trigger: Any) -> str:
        return "failed"

    monkeypatch.setattr("llm_bridge.triggers.base.task_state", failed)
    user_code = f"{trigger.directory.rpartition('/')[0]}/again"
    until(lambda: slurm.run("login", ["test", "-e", user_code], user="svc").returncode == 0)
    asyncio.run(trigger.on_kill())
    state = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", trigger.job_id]
    assert slurm.run("login", state, user="svc").stdout.strip() == "CANCELLED"
    slurm.run("login", ["rm", user_code], user="svc")
    assert slurm.run("ctl", ["scontrol", "requeue", trigger.job_id]).returncode == 0
    until(lambda: slurm.run("login", state, user="svc").stdout.strip() == "COMPLETED")
    assert slurm.run("login", ["test", "-e", user_code], user="svc").returncode != 0


def test_one_bad_id_affects_neither_the_query_nor_the_cancellation_of_other_jobs(
    task: Any, slurm: Any
) -> None:
    job_id = task.start(submit("sleep 60")).job_id
    bad = ["Welcome\n12", "x", "0", "-1", "", "4294967296", "2147483648", "12_3", "999999"]

    async def ask(client: SlurmClient) -> Any:
        found = await client.find([*bad, job_id])
        await client.cancel([*bad, job_id])
        assert not await client.release("x") and await client.accounting("x", ended=True) is None
        return found

    found = with_client(ask)
    assert list(found) == [job_id] and found[job_id].phase is not Phase.ENDED
    until(lambda: with_client(lambda client: client.find([job_id]))[job_id].state == "CANCELLED")


def test_rows_are_found_among_other_output_of_a_sites_squeue_and_sacct(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the site's wrapper adds lines around the output of the real commands."""
    job_id = task.run(submit("true"))["job_id"]
    original = SlurmClient.run

    async def chatty(self: Any, argv: Any, **options: Any) -> Any:
        done = await original(self, argv, **options)
        return replace(done, stdout=f"+-|-|-|-|-|-|-|-|-|-+\nWelcome\n{done.stdout}\nbye|\n")

    async def forgotten(self: Any, argv: Any, **options: Any) -> Any:
        return (
            replace(await chatty(self, argv, **options), stdout="")
            if argv[0] == "squeue"
            else await chatty(self, argv, **options)
        )

    for command in (chatty, forgotten):
        monkeypatch.setattr(SlurmClient, "run", command)

        def known() -> Any:
            return with_client(lambda client: client.find([job_id]))

        until(known)
        assert {i: info.state for i, info in known().items()} == {job_id: "COMPLETED"}


def with_client(use: Any) -> Any:
    async def connected() -> Any:
        async with open_client("test") as client:
            return await use(client)

    return asyncio.run(connected())


@pytest.fixture
def squeue_lists_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let squeue list no job, as after slurmctld has lost it; accounting's answer is the real one."""
    original = SlurmClient.run

    async def run(self: Any, argv: Any, **options: Any) -> Any:
        done = await original(self, argv, **options)
        return replace(done, code=0, stdout="", stderr="") if argv[0] == "squeue" else done

    monkeypatch.setattr(SlurmClient, "run", run)
    monkeypatch.setattr(poller, "LOST_TIMEOUT_SECONDS", 2.0)


def test_a_job_that_runs_for_accounting_alone_is_not_lost_and_is_not_submitted_again(
    task: Any, squeue_lists_nothing: None, logged: Any
) -> None:
    done = task.run(submit("sleep 15"))
    assert done["state"] == "COMPLETED" and done["directory"].endswith("/attempt-1")
    assert any("but accounting has it as" in line for line in logged())  # RUNNING, or PENDING as it lags


def test_a_job_that_runs_for_accounting_alone_counts_as_lost_after_a_longer_timeout(
    task: Any, squeue_lists_nothing: None, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "UNLISTED_TIMEOUT_SECONDS", 8.0)
    trigger = task.start(submit("sleep 60"))
    event = SlurmJobEvent.from_json(asyncio.run(trigger.outcome()))
    assert event.end is EndReason.FORGOTTEN and event.info is None
    assert "although accounting has it as RUNNING, for 8 s" in event.notice
    slurm.run("ctl", ["scancel", trigger.job_id])


def test_a_script_that_requests_a_node_keeps_it_although_the_job_failed_there(task: Any, logged: Any) -> None:
    """Slurm refuses a node that is both requested and excluded, so --test-only must get the same script."""
    directive = "#SBATCH --nodelist=n1\n"
    with pytest.raises(SlurmJobFailed):
        task.run(submit(f"{directive}{BLAME}"))
    assert task.run(submit(f"{directive}echo ran on $SLURM_JOB_NODELIST"))["state"] == "COMPLETED"
    lines = logged()
    assert "ran on n1" in lines and any("Slurm refuses the job without" in line for line in lines)
