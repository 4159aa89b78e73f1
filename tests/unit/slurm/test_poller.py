"""Polling of one job: its lease, its output, and its end."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.loader import load_cluster
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome, Started
from llm_bridge.remote.login import poll_jobs
from llm_bridge.remote.messages import JobNews, PollAnswer, PollRequest, decode, encode
from llm_bridge.slurm import poller
from llm_bridge.slurm.events import EndReason
from llm_bridge.slurm.poller import ClusterPoller, JobPoll
from llm_bridge.slurm.status import JobInfo

NEWS = JobNews("0", {})
LOST = NEWS._replace(lease_lost=True)


@pytest.fixture
def follower() -> JobPoll:
    job = JobPoll("7", "/w/attempt-1", (attempt_dir.OUTCOME,), {"follower": "a"})
    job.lease_acquired, job.offset = True, 10
    return job


def end_notice(job: JobPoll) -> str | None:
    end = ClusterPoller._end(job, None)
    return end.notice if end else None


def test_a_follower_that_lost_its_lease_neither_reads_nor_ends(follower: JobPoll) -> None:
    assert follower.settled and follower.query("0").log
    follower.take(LOST)
    assert not follower.settled and follower.query("0").log is None


def test_a_follower_that_still_exists_after_a_while_acquires_its_lease_again(
    follower: JobPoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The triggerer that had acquired the lease was killed, and Airflow assigned the trigger to this one again."""
    follower.take(LOST)
    assert not follower.query("0").acquire
    monkeypatch.setattr(poller, "RECLAIM_SECONDS", -1.0)
    follower.take(LOST)
    assert follower.query("0").acquire and not follower.settled
    follower.lease_acquired, follower.offset = True, 10
    follower.take(NEWS)
    assert follower.settled and follower.query("0").log


@pytest.mark.parametrize(("truncated", "offset"), [(False, 70), (True, 0)])
def test_the_lease_keeps_the_offset_of_the_previous_follower_until_the_new_one_knows_its_own(
    truncated: bool, offset: int
) -> None:
    job = JobPoll("7", "/w/attempt-1", (), {"follower": "b", "offset": 0, "truncated": truncated})
    job.acquired({"follower": "a", "offset": 70})
    lease = job.query("0").lease
    assert lease and (lease["follower"], lease["offset"]) == ("b", offset)
    job.resume_at(30)
    query = job.query("0")
    assert query.lease and query.lease["offset"] == 30 and query.log and query.log.offset == 30


def test_a_job_whose_output_grows_is_not_lost_even_if_slurm_does_not_know_it(follower: JobPoll) -> None:
    follower.unknown_since = time.monotonic() - 10_000
    follower.take(NEWS)
    assert (notice := end_notice(follower)) and "Slurm has lost" in notice
    follower.take(NEWS._replace(log=base64.b64encode(b"step 1\n").decode(), offset=10))
    assert end_notice(follower) is None


def test_the_next_query_starts_after_the_output_that_was_read(follower: JobPoll) -> None:
    log = base64.b64encode(b"step 1\n").decode()
    update = follower.take(NEWS._replace(log=log, offset=30, skipped=20, size=40))
    assert (update.log, update.offset, update.skipped) == (b"step 1\n", 30, 20)
    query = follower.query("0").log
    assert query and query.offset == 37 and not query.final


def test_a_file_is_reported_when_its_content_changes(follower: JobPoll) -> None:
    outcome = {attempt_dir.OUTCOME: {"exit_code": 0, "ended": 1.0}}
    assert follower.take(NEWS._replace(files=outcome)).files == outcome
    assert follower.take(NEWS._replace(files=outcome)).files == {}


def test_the_last_query_reads_result_and_reason_and_removes_the_secrets(follower: JobPoll) -> None:
    last = follower.query("0", final=True)
    assert last.over and last.log and last.log.final
    assert {attempt_dir.RESULT, attempt_dir.REASON} <= set(last.files)
    assert not follower.query("0").over
    follower.inner_end = asyncio.Event()
    assert not follower.query("0", final=True).over, "the Slurm job of the Ray job runs on and needs them"


@pytest.mark.parametrize(
    ("info", "outcome", "state"),
    [
        (JobInfo("7", "RUNNING"), {"exit_code": 3, "ended": 1.0}, None),
        (JobInfo("7", "FAILED"), None, "FAILED"),
        (None, {"exit_code": 3, "ended": 1.0}, "FAILED"),
        (None, None, None),
    ],
)
def test_a_job_has_ended_for_slurm_or_by_its_outcome_file_once_slurm_has_forgotten_it(
    follower: JobPoll, info: JobInfo | None, outcome: dict[str, Any] | None, state: str | None
) -> None:
    follower.seen[attempt_dir.OUTCOME] = outcome
    end = ClusterPoller._end(follower, info)
    assert (end.info.state if end and end.info else None) == state
    assert end is None or end.end is EndReason.ENDED


def test_the_files_of_a_job_that_succeeded_are_waited_for_if_they_appear_late(follower: JobPoll) -> None:
    done = JobInfo("7", "COMPLETED")
    assert ClusterPoller._end(follower, done) is None
    follower.seen[attempt_dir.OUTCOME] = {"exit_code": 0, "ended": 1.0}
    assert ClusterPoller._end(follower, done)


def test_a_job_that_succeeded_ends_without_its_files_after_a_while(follower: JobPoll) -> None:
    done = JobInfo("7", "COMPLETED")
    assert ClusterPoller._end(follower, done) is None
    assert follower.late_since
    follower.late_since -= poller.LATE_FILES_SECONDS
    end = ClusterPoller._end(follower, done)
    assert end and "outcome file is not visible" in end.notice


def test_the_slurm_job_of_a_ray_job_has_its_files_in_another_directory(follower: JobPoll) -> None:
    follower.inner_end = asyncio.Event()
    assert ClusterPoller._end(follower, JobInfo("7", "COMPLETED"))


def test_a_job_that_has_not_ended_for_accounting_is_lost_later(follower: JobPoll) -> None:
    follower.unknown_since = time.monotonic() - poller.LOST_TIMEOUT_SECONDS - 1
    follower.accounted = "RUNNING"
    assert end_notice(follower) is None
    follower.unknown_since = time.monotonic() - poller.UNLISTED_TIMEOUT_SECONDS - 1
    assert "RUNNING" in str(end_notice(follower))


def test_a_job_whose_id_slurm_gave_to_another_one_is_lost_after_the_grace_time(follower: JobPoll) -> None:
    follower.id_reused = True
    follower.unknown_since = time.monotonic()
    assert end_notice(follower) is None
    follower.unknown_since = time.monotonic() - poller.REQUEUE_GRACE_SECONDS - 1
    end = ClusterPoller._end(follower, None)
    assert end and end.end is EndReason.FORGOTTEN and "another job has its id" in end.notice


class Login:
    """Stands for the session on the login node and for Slurm: reads real files, and counts what Slurm is asked."""

    def __init__(self, waited: float = 0, **states: str) -> None:
        self.waited, self.states, self.requests, self.questions = waited, states, 0, 0

    async def ask(self, line: bytes) -> bytes:
        self.requests += 1
        request = decode(PollRequest, json.loads(line))
        return json.dumps(encode(PollAnswer([poll_jobs.poll(job) for job in request.jobs]))).encode()

    async def find(self, job_ids: list[str], **options: Any) -> dict[str, JobInfo]:
        self.questions += 1
        states = {job_id: self.states.get(f"j{job_id}", "RUNNING") for job_id in job_ids}
        return {job_id: JobInfo(job_id, state, waited=self.waited) for job_id, state in states.items()}


@pytest.fixture
def cluster_poller() -> ClusterPoller:
    return ClusterPoller(load_cluster("local").model_copy(update={"poll_seconds": 30.0}))


def follow(cluster_poller: ClusterPoller, folder: Path, number: int, **options: Any) -> JobPoll:
    """Follow job ``number``, whose attempt's directory is made in ``folder``."""
    (folder / str(number)).mkdir()
    job = JobPoll(str(number), str(folder / str(number)), (attempt_dir.OUTCOME,), None, **options)
    job.offset = 0
    cluster_poller._jobs.add(job)
    return job


def end(job: JobPoll, code: int) -> None:
    folder = Path(job.directory)
    attempt_dir.write_json(str(folder / attempt_dir.STARTED), Started(job.job_id, 100.0, "n1"))
    attempt_dir.write_json(str(folder / attempt_dir.OUTCOME), Outcome(code, 130.5, restarts=1))


def updates(job: JobPoll) -> list[poller.JobUpdate]:
    return [job.queue.get_nowait() for _ in range(job.queue.qsize())]


async def test_jobs_that_end_well_are_no_reason_to_ask_slurm(
    cluster_poller: ClusterPoller, tmp_path: Path
) -> None:
    login: Any = Login()
    # Not due again during the test, however slow the machine is.
    cluster_poller.cluster = cluster_poller.cluster.model_copy(update={"poll_seconds": 600.0})
    jobs = [follow(cluster_poller, tmp_path, n) for n in range(1, 101)]
    await cluster_poller._poll(login, login)
    assert login.questions == 1
    for job in jobs:
        end(job, 0)
        if int(job.job_id) % 10 == 0:
            await cluster_poller._poll(login, login)
    assert (login.questions, login.requests) == (1, 1 + 2 * 10), "two requests for those that have ended"
    assert not cluster_poller._jobs and all(updates(job)[-1].end is EndReason.ENDED for job in jobs)


async def test_a_job_that_wrote_exit_code_0_ends_at_once_with_its_own_times_and_nodes(
    cluster_poller: ClusterPoller, tmp_path: Path
) -> None:
    login: Any = Login(j7="PENDING")
    job = follow(cluster_poller, tmp_path, 7)
    await cluster_poller._poll(login, login)
    job.submitted = 60.0
    end(job, 0)
    (tmp_path / "7" / attempt_dir.OUTPUT).write_text("the last line without an end")
    (tmp_path / "7" / attempt_dir.RESULT).write_text('{"answer": 42}')
    await cluster_poller._poll(login, login)
    *_, last, ended = updates(job)
    assert last.log == b"the last line without an end" and last.files[attempt_dir.RESULT] == {"answer": 42}
    info = ended.info
    assert info and (info.state, info.nodes, info.restarts) == ("COMPLETED", "n1", 1)
    assert (info.queue_seconds, info.run_seconds) == (40, 30.5)
    assert not ended.notice and login.questions == 1


async def test_the_wait_in_the_queue_is_slurms_also_for_a_follower_that_begins_long_after_the_start(
    cluster_poller: ClusterPoller, tmp_path: Path
) -> None:
    login: Any = Login(waited=40)
    job = follow(cluster_poller, tmp_path, 7)
    await cluster_poller._poll(login, login)
    end(job, 0)
    await cluster_poller._poll(login, login)
    info = updates(job)[-1].info
    assert info and (info.queue_seconds, info.run_seconds) == (40, 30.5)


async def test_slurm_is_asked_soon_why_a_job_failed(cluster_poller: ClusterPoller, tmp_path: Path) -> None:
    login: Any = Login()
    job, other = follow(cluster_poller, tmp_path, 7), follow(cluster_poller, tmp_path, 8)
    await cluster_poller._poll(login, login)
    end(job, 143)
    login.states["j7"] = "PREEMPTED"
    cluster_poller._asked -= poller.FAST_POLL_INTERVAL_SECONDS
    await cluster_poller._poll(login, login)
    ended = updates(job)[-1]
    assert login.questions == 2 and ended.info and ended.info.state == "PREEMPTED"
    assert cluster_poller._jobs == {other}


async def test_the_slurm_job_of_a_ray_job_that_succeeded_goes_on(
    cluster_poller: ClusterPoller, tmp_path: Path
) -> None:
    login: Any = Login()
    cluster_job = follow(cluster_poller, tmp_path, 7)
    inner = follow(cluster_poller, tmp_path, 8, inner_end=asyncio.Event())
    end(inner, 0)
    await cluster_poller._poll(login, login)
    assert cluster_poller._jobs == {cluster_job}
    assert not inner.succeeded and updates(inner)[-1] == poller.JobUpdate(end=EndReason.ENDED)


async def test_work_that_a_job_completed_before_slurm_ended_it_counts(
    cluster_poller: ClusterPoller, tmp_path: Path
) -> None:
    """The outcome file becomes visible between the poll of the files and squeue."""

    class Late(Login):
        async def find(self, job_ids: list[str], **options: Any) -> dict[str, JobInfo]:
            end(job, 0)
            return await super().find(job_ids)

    login: Any = Late(j7="NODE_FAIL")
    job = follow(cluster_poller, tmp_path, 7)
    await cluster_poller._poll(login, login)
    ended = updates(job)[-1]
    assert ended.info and ended.info.meaning.good and "Slurm reports NODE_FAIL" in ended.notice


async def test_with_many_jobs_a_new_one_is_no_reason_for_a_squeue_every_few_seconds(
    cluster_poller: ClusterPoller, tmp_path: Path
) -> None:
    few = [follow(cluster_poller, tmp_path, n) for n in range(1, 11)]
    cluster_poller._asked = time.monotonic() - poller.FAST_POLL_INTERVAL_SECONDS
    assert cluster_poller._squeue_due(few)
    assert not cluster_poller._squeue_due(few * 20)
    few[0].seen[attempt_dir.OUTCOME] = {"exit_code": 1, "ended": 1.0}
    assert cluster_poller._squeue_due(few * 20)


async def test_all_tasks_of_one_event_loop_share_the_poller_of_a_cluster() -> None:
    cluster = load_cluster("local")
    assert poller.poller_for(cluster) is poller.poller_for(cluster)
    changed = cluster.model_copy(update={"poll_seconds": 99.0})
    assert poller.poller_for(changed).cluster == changed


@pytest.mark.parametrize(("took", "asked"), [([0.0], 1), ([11.0, 0.0], 2), ([11.0, 11.0], 2)])
async def test_an_answer_that_is_read_late_is_asked_for_again_once(
    monkeypatch: pytest.MonkeyPatch, took: list[float], asked: int
) -> None:
    """A triggerer that was stopped has lines in its answer that another one has logged since."""
    now = 0.0

    class SlowSession:
        """Stands for a process that is stopped while it waits, which would stop the test as well."""

        requests = 0

        async def ask(self, line: bytes) -> bytes:
            nonlocal now
            (query,) = json.loads(line)["jobs"]
            assert query["acquire"] == (self.requests == 0), "another follower may have the lease by now"
            now += took[self.requests]
            self.requests += 1
            news = NEWS._replace(lease_lost=self.requests > 1)
            return json.dumps(encode(PollAnswer([news]))).encode()

    monkeypatch.setattr(poller.time, "monotonic", lambda: now)
    session: Any = SlowSession()
    query = JobPoll("7", "/w/attempt-1", (), {"follower": "a"}).query("0")
    (news,) = await poller._ask(session, [query])
    assert (session.requests, news.lease_lost) == (asked, asked > 1)


def test_measures_are_read_on_from_where_they_ended_at_a_bounded_rate(
    follower: JobPoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follower.query("0").measures is None
    follower.measures = {}
    assert follower.query("0").measures == {}
    update = follower.take(JobNews("0", {}, measures={"metrics.jsonl": ["{}\n", 3]}, more_measures=True))
    assert update.measures["metrics.jsonl"].text == "{}\n"
    assert follower.query("0").measures == {"metrics.jsonl": 3}  # at once, because more can be read
    follower.take(JobNews("0", {}, measures={"metrics.jsonl": ["{}\n", 6]}))
    assert follower.query("0").measures is None
    assert follower.query("0", final=True).measures == {"metrics.jsonl": 6}
    monkeypatch.setattr(poller, "MEASURES_INTERVAL_SECONDS", 0.0)
    follower.measures_due = 0.0
    assert follower.query("0").measures == {"metrics.jsonl": 6}


def test_a_pending_job_has_a_new_state_if_slurms_reason_or_its_estimate_of_the_start_changes() -> None:
    pending = JobInfo("7", "PENDING", reason="Priority", submitted=100.0, started=400.0, waited=10)
    assert pending.expected_wait == 300.0
    assert not poller._changed(pending, replace(pending, waited=20))
    assert poller._changed(pending, replace(pending, reason="Resources"))
    assert poller._changed(pending, replace(pending, started=500.0))
    running = replace(pending, state="RUNNING")
    assert running.expected_wait is None and poller._changed(pending, running)
    assert not poller._changed(running, replace(running, started=500.0))
