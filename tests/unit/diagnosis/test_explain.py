"""From the end of a job to evidence, diagnosis and action, without a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.diagnosis import explain as explain_module
from llm_bridge.diagnosis.classes import Action
from llm_bridge.diagnosis.evidence import Evidence, LogLocation
from llm_bridge.diagnosis.explain import FailureReport, explain, own_checkpoints
from llm_bridge.diagnosis.explain_ray import explain_ray
from llm_bridge.diagnosis.explain_slurm import explain_slurm
from llm_bridge.diagnosis.progress_ledger import load
from llm_bridge.diagnosis.signatures import BY_ID
from llm_bridge.ray.client import RayJobDetails, RayTarget
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.ray.spec import RayJob
from llm_bridge.remote.attempt_dir import Outcome
from llm_bridge.slurm.events import EndReason, HangReport, SlurmJobEvent
from llm_bridge.slurm.spec import Resources, SlurmJob, StageOutput
from llm_bridge.slurm.status import JobInfo
from llm_bridge.task_state import TaskState
from testing.task_context import Task

DELAY = timedelta(seconds=60)
ATTEMPT, CLUSTER = "/w/ppo/ray-1", "/w/cluster/attempt-1"
NOWHERE = LogLocation("", "", "", ())
FAILED = JobInfo("7", "FAILED", exit_code=1, nodes="n1")
SLURM = SlurmJobEvent("7", "local", ATTEMPT, EndReason.ENDED, info=FAILED)
TARGET = RayTarget(cluster="local", job_id="9", directory=CLUSTER)
RAY = RayJobEvent(RayEndReason.FAILED, target=TARGET, submission_id="ray-7", directory=ATTEMPT)
SAVES = "/w/sft/checkpoints"
TRAINING = SlurmJob(
    cluster="local",
    script="#!/bin/sh\n",
    directory="/w/sft",
    settings={"checkpoint_dir": SAVES},
    output=StageOutput(outputs=[SAVES]),
    resources=Resources(nodes=2, gpus_per_node=8),
)


@pytest.fixture
def task() -> TaskState:
    return TaskState.from_context(Task("t", retries=2).context)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments with which evidence would be collected from the cluster."""
    found = SimpleNamespace()

    async def collect(partial: Evidence, location: LogLocation, last_lines: Iterable[str] = ()) -> Evidence:
        found.partial, found.location, found.last_lines = partial, location, tuple(last_lines)
        return partial

    monkeypatch.setattr(explain_module, "collect", collect)
    return found


async def ray_report(task: TaskState, event: RayJobEvent, job: RayJob | None = None) -> FailureReport:
    return await explain_ray(task, event, job, None, retry_delay=DELAY, final=False)


async def test_the_report_has_cause_action_and_number_of_the_try(task: TaskState) -> None:
    lines = [BY_ID["torch_cuda_oom"].excerpt]
    report = await explain(
        task, Evidence(info=FAILED), NOWHERE, name="job 7", retry_delay=DELAY, last_lines=lines
    )
    found = report.diagnosis
    assert (found.kind, found.try_number, found.max_tries) == ("cuda_oom", 1, 3)
    assert report.decision.action is Action.STOP and not report.should_resume
    assert found.next_action == report.decision.text


async def test_each_attempt_is_counted_once_and_an_interruption_apart(task: TaskState) -> None:
    preempted = Evidence(info=JobInfo("7", "PREEMPTED"))
    for _ in range(2):
        report = await explain(task, preempted, NOWHERE, name="job 7", retry_delay=DELAY)
        assert report.should_resume
    ledger = load(task)
    assert (ledger.ended, ledger.interrupted, ledger.no_progress) == (("job 7",), 1, 0)


async def test_an_error_while_evidence_is_collected_does_not_hide_the_failure(
    task: TaskState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def collect(*arguments: Any) -> Evidence:
        raise RuntimeError("defect")

    monkeypatch.setattr(explain_module, "collect", collect)
    timed_out = JobInfo("7", "OUT_OF_MEMORY")
    report = await explain(task, Evidence(info=timed_out), NOWHERE, name="job 7", retry_delay=DELAY)
    assert report.diagnosis.kind == "host_oom"
    assert "failed to collect evidence of job 7" in caplog.text


def test_checkpoints_of_another_stage_are_not_the_jobs_own() -> None:
    assert own_checkpoints({"checkpoint_dir": SAVES}, [SAVES]) == SAVES
    assert own_checkpoints({"checkpoint_dir": SAVES}, ["/w/merged"]) is None
    assert own_checkpoints({}, [SAVES]) is None


async def test_a_slurm_jobs_own_logs_and_checkpoints_are_searched(task: TaskState, collected: Any) -> None:
    await explain_slurm(task, SLURM, TRAINING, retry_delay=DELAY)
    assert (collected.partial.gpus, collected.partial.trains) == (16, True)
    assert collected.location.checkpoints == SAVES and collected.location.ray_cluster is None
    assert collected.location.logs[0] == f"{ATTEMPT}/output.log"


@pytest.mark.parametrize(
    ("end", "kind"),
    [(EndReason.TIMEOUT, "task_limit"), (EndReason.HUNG, "hang"), (EndReason.FORGOTTEN, "forgotten")],
)
async def test_an_end_that_is_no_state_of_slurm_has_a_class_of_its_own(
    task: TaskState, collected: Any, end: EndReason, kind: str
) -> None:
    event = replace(SLURM, end=end, info=None, notice="x")
    assert (await explain_slurm(task, event, TRAINING, retry_delay=DELAY)).diagnosis.kind == kind


async def test_an_ended_job_of_another_task_is_not_retried(task: TaskState, collected: Any) -> None:
    ended = await explain_slurm(task, SLURM, None, retry_delay=DELAY)
    assert ended.decision.action is Action.STOP and "another task" in ended.decision.text
    waiting = await explain_slurm(task, replace(SLURM, end=EndReason.TIMEOUT), None, retry_delay=DELAY)
    assert waiting.decision.action is Action.LATER


async def test_a_ray_jobs_own_log_comes_before_those_of_its_cluster(task: TaskState, collected: Any) -> None:
    details = RayJobDetails("FAILED", "it crashed\nat the end", "JOB_ENTRYPOINT_COMMAND_ERROR", 3)
    await ray_report(task, replace(RAY, job=details, info=FAILED))
    partial = collected.partial
    assert partial.info is None, "the state of its cluster is no evidence for a job that failed by itself"
    assert (partial.is_ray, partial.driver_exit_code) == (True, 3)
    assert collected.location.logs[0] == f"{ATTEMPT}/output.log"
    assert collected.location.ray_cluster == CLUSTER and collected.location.job_id == ""
    assert collected.last_lines == ("it crashed", "at the end")


async def test_the_logs_of_a_lost_ray_cluster_come_first(task: TaskState, collected: Any) -> None:
    lost = replace(RAY, end=RayEndReason.ALLOCATION_ENDED, info=FAILED, outcome=Outcome(143, 2.0))
    await ray_report(task, lost)
    assert collected.partial.info == FAILED and collected.partial.driver_exit_code is None
    assert collected.location.logs[0] == f"{CLUSTER}/output.log" and collected.location.job_id == "9"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"end": RayEndReason.TIMEOUT}, "task_limit"),
        ({"end": RayEndReason.STOPPED, "hang": HangReport("30 min", ended=True), "notice": "hang"}, "hang"),
        ({"end": RayEndReason.ALLOCATION_ENDED, "forgotten": True, "notice": "Slurm has lost"}, "forgotten"),
    ],
    ids=["time limit", "hang", "cluster forgotten by Slurm"],
)
async def test_an_end_that_is_no_state_of_ray_has_a_class_of_its_own(
    task: TaskState, collected: Any, fields: dict[str, Any], kind: str
) -> None:
    assert (await ray_report(task, replace(RAY, **fields))).diagnosis.kind == kind


async def test_a_ray_job_that_may_still_run_is_retried_although_it_belongs_to_another_task(
    task: TaskState, collected: Any
) -> None:
    assert (await ray_report(task, RAY)).decision.action is Action.STOP
    unreachable = replace(RAY, end=RayEndReason.UNREACHABLE)
    assert (await ray_report(task, unreachable)).decision.action is Action.LATER
