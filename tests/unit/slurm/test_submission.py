"""Submission of a task's job: found, resumed, or submitted as the next attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError, EarlierAttemptRuns, NotAcceptedYet, SlurmUnavailable
from llm_bridge.remote import messages
from llm_bridge.remote.messages import FoundResult, SubmitAnswer
from llm_bridge.slurm import attempts, submission
from llm_bridge.slurm.spec import ResolvedJob, SlurmJob
from llm_bridge.slurm.status import JobInfo
from llm_bridge.slurm.submission import JobNotGone, SlurmSubmission
from llm_bridge.task_state import TaskState

JOB = SlurmJob(cluster="here", directory="/w/d/r/t", script="#!/bin/bash\ntrue\n")
FOLLOWUP = JOB.model_copy(update={"directory": "/w/d/r/next"})
SUBMITTED = SubmitAnswer(messages.SUBMITTED, "7")


class Client:
    """Stands for SlurmClient: gives prepared answers and records the calls."""

    def __init__(self) -> None:
        self.cluster = Cluster(name="here", ssh_conn_id=None, workspace="/w", gpus_per_node=8)
        self.answers: list[SubmitAnswer | Exception] = [SUBMITTED]
        self.info: JobInfo | None = None
        self.refuses: Exception | None = None
        self.submitted: list[tuple[str, str]] = []
        self.resolved: list[ResolvedJob] = []

    async def submit(
        self,
        resolved: ResolvedJob,
        directory: str,
        key: str,
        owner: Any,
        secrets: Any,
        *,
        is_first: bool,
        **more: Any,
    ) -> SubmitAnswer:
        self.submitted.append((directory, key))
        self.resolved.append(resolved)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def look_up(self, job_id: str, directory: str) -> JobInfo | None:
        return self.info

    async def test_only(self, resolved: ResolvedJob, directory: str, key: str) -> str:
        if self.refuses:
            raise self.refuses
        return "fits"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()

    @asynccontextmanager
    async def open_client(cluster: str) -> AsyncIterator[Client]:
        yield client

    monkeypatch.setattr(submission, "open_client", open_client)
    return client


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The ids that were cancelled, and those that do not end."""
    found: dict[str, Any] = {"closed": [], "cancelled": [], "left": {}}

    async def close_attempts(cluster: str, directory: str) -> list[str]:
        found["closed"].append(directory)
        return ["7"]

    async def cancel_and_wait(cluster: str, ids: list[str], seconds: float) -> Any:
        found["cancelled"] += ids
        return found["left"]

    monkeypatch.setattr(submission, "close_attempts", close_attempts)
    monkeypatch.setattr(submission, "cancel_and_wait", cancel_and_wait)
    return found


async def test_a_first_try_submits_and_stores_the_job(client: Client, task: TaskState) -> None:
    found = await SlurmSubmission(JOB, task, {}).submit()
    assert (found.attempt.number, found.attempt.job_id, found.info) == (1, "7", None)
    assert attempts.load(task) == found.attempt
    assert client.submitted == [("/w/d/r/t/attempt-1", task.job_name(1))]


async def test_a_try_that_was_killed_before_the_id_was_stored_asks_for_the_same_attempt_again(
    client: Client, task: TaskState
) -> None:
    client.answers = [SlurmUnavailable("slurmctld"), SubmitAnswer(messages.FOUND, "7")]
    with pytest.raises(SlurmUnavailable):
        await SlurmSubmission(JOB, task, {}).submit()
    found = await SlurmSubmission(JOB, replace(task, try_number=2), {}).submit()
    assert found.attempt.job_id == "7"
    assert len(set(client.submitted)) == 1 and len(client.submitted) == 2


async def test_a_running_job_is_resumed_and_a_failed_one_followed_by_the_next_attempt(
    client: Client, task: TaskState
) -> None:
    await SlurmSubmission(JOB, task, {}).submit()
    client.info = JobInfo("7", "RUNNING")
    found = await SlurmSubmission(JOB, task, {}).submit()
    assert (found.attempt.number, found.info, found.has_ended) == (1, client.info, False)
    client.info, client.answers = JobInfo("7", "FAILED"), [SubmitAnswer(messages.SUBMITTED, "8")]
    found = await SlurmSubmission(JOB, task, {}).submit()
    assert (found.attempt.number, found.attempt.job_id) == (2, "8")


async def test_a_job_that_completes_while_its_successor_waits_for_its_processes_is_not_submitted_again(
    client: Client, task: TaskState
) -> None:
    """Slurm has ended it with NODE_FAIL, because its node does not answer."""
    await SlurmSubmission(JOB, task, {}).submit()
    attempts.mark_ended(task, "7")
    client.info, client.answers = JobInfo("7", "NODE_FAIL"), [EarlierAttemptRuns("job 7 still runs")]
    with pytest.raises(EarlierAttemptRuns):
        await SlurmSubmission(JOB, task, {}).submit()
    client.info = JobInfo("7", "COMPLETED")
    found = await SlurmSubmission(JOB, task, {}).submit()
    assert (found.attempt.number, found.has_ended) == (1, True) and len(client.submitted) == 2


async def test_a_job_that_does_not_complete_while_its_successor_waits_is_submitted_again_once(
    client: Client, task: TaskState
) -> None:
    await SlurmSubmission(JOB, task, {}).submit()
    attempts.mark_ended(task, "7")
    client.info = JobInfo("7", "NODE_FAIL")
    client.answers = [EarlierAttemptRuns("job 7 still runs"), SubmitAnswer(messages.SUBMITTED, "8")]
    with pytest.raises(EarlierAttemptRuns):
        await SlurmSubmission(JOB, task, {}).submit()
    found = await SlurmSubmission(JOB, task, {}).submit()
    assert (found.attempt.number, found.attempt.job_id) == (2, "8")
    assert len({key for _, key in client.submitted}) == 2


async def test_a_job_that_has_succeeded_is_not_submitted_again(client: Client, task: TaskState) -> None:
    await SlurmSubmission(JOB, task, {}).submit()
    client.info = JobInfo("7", "COMPLETED")
    found = await SlurmSubmission(JOB, task, {}).submit()
    assert found.has_ended and len(client.submitted) == 1


async def test_an_existing_result_replaces_the_job_and_its_followup(client: Client, task: TaskState) -> None:
    result = FoundResult("3", "/w/d/r/t/attempt-0")
    client.answers = [SubmitAnswer(messages.REUSED, result=result)]
    found = await SlurmSubmission(JOB, task, {}, followup=FOLLOWUP).submit()
    assert (found.reused, found.followup, found.attempt.job_id) == (result, None, None)


async def test_an_attempt_that_was_closed_is_followed_by_the_next_one(
    client: Client, task: TaskState
) -> None:
    client.answers = [SubmitAnswer(messages.CLOSED), SUBMITTED]
    found = await SlurmSubmission(JOB, task, {}).submit()
    assert found.attempt.number == 2
    assert [directory for directory, _ in client.submitted] == ["/w/d/r/t/attempt-1", "/w/d/r/t/attempt-2"]


async def test_the_job_of_a_cleared_task_has_to_end_before_the_next_one(
    client: Client, task: TaskState, cancelled: dict[str, Any]
) -> None:
    await SlurmSubmission(JOB, task, {}).submit()
    after_clear = replace(task, clear_number=1, max_tries=5)
    cancelled["left"] = {"6": JobInfo("6", "COMPLETING"), "7": JobInfo("7", "RUNNING")}
    with pytest.raises(JobNotGone, match="Slurm job 6, 7 has not ended"):
        await SlurmSubmission(JOB, after_clear, {}).submit()
    # An epilog may take minutes: the task waits for it, which uses no retry.
    cancelled["left"] = {"7": JobInfo("7", "COMPLETING")}
    with pytest.raises(EarlierAttemptRuns, match="Slurm job 7 is still COMPLETING"):
        await SlurmSubmission(JOB, after_clear, {}).submit()
    assert len(client.submitted) == 1
    cancelled["left"], client.answers = {}, [SubmitAnswer(messages.SUBMITTED, "8")]
    found = await SlurmSubmission(JOB, after_clear, {}).submit()
    assert (found.attempt.number, found.attempt.is_first) == (2, True)
    assert cancelled["cancelled"] == ["7", "7", "7"]


@pytest.mark.parametrize("refusal", [ConfigError("too few nodes"), NotAcceptedYet("drained")])
async def test_nodes_that_failed_are_excluded_if_slurm_accepts_that(
    client: Client, task: TaskState, refusal: Exception
) -> None:
    attempts.exclude_nodes(task, ["n1"])
    client.refuses = refusal
    client.answers = [SUBMITTED, SUBMITTED]
    await SlurmSubmission(JOB, task, {}).submit()
    assert "exclude" not in dict(client.resolved[-1].directives)
    attempts.mark_ended(task, "7")
    client.refuses = None
    await SlurmSubmission(JOB, task, {}).submit()
    assert dict(client.resolved[-1].directives)["exclude"] == "n1"


async def test_a_followup_waits_for_the_success_of_the_job(client: Client, task: TaskState) -> None:
    client.answers = [SUBMITTED, SubmitAnswer(messages.SUBMITTED, "8")]
    found = await SlurmSubmission(JOB, task, {}, followup=FOLLOWUP).submit()
    assert found.followup == {"job_id": "8", "directory": "/w/d/r/next/attempt-1"}
    assert dict(client.resolved[-1].directives)["dependency"] == "afterok:7"
    assert client.submitted[0][1] != client.submitted[1][1], "names of jobs are unique"


@pytest.mark.parametrize("refusal", [ConfigError("no such partition"), NotAcceptedYet("submit limit")])
async def test_a_followup_that_slurm_refuses_does_not_fail_the_job(
    client: Client, task: TaskState, refusal: Exception
) -> None:
    client.answers = [SUBMITTED, refusal]
    found = await SlurmSubmission(JOB, task, {}, followup=FOLLOWUP).submit()
    assert (found.attempt.job_id, found.followup) == ("7", None)


async def test_an_adopted_job_takes_the_place_of_a_new_one(
    client: Client, task: TaskState, cancelled: dict[str, Any]
) -> None:
    other = replace(attempts.next_attempt(task, "/w/d/r/other", None), number=0, job_id="5")

    async def adopt(client: Any, last: Any) -> tuple[attempts.Attempt, JobInfo]:
        other.save(task)
        return other, JobInfo("5", "PENDING")

    own = SlurmSubmission(JOB, task, {}, adopt=adopt)
    assert (await own.submit()).attempt == other and not client.submitted
    await own.cancel()
    assert cancelled["cancelled"] == ["7", "5"]
