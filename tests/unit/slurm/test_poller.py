"""Polling of one job: its lease, its output, and its end."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from llm_bridge.config.loader import load_cluster
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import JobNews, PollAnswer, encode
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
        (JobInfo("7", "RUNNING"), {"exit_code": 0, "ended": 1.0}, None),
        (JobInfo("7", "FAILED"), None, "FAILED"),
        (JobInfo("7", "NODE_FAIL"), {"exit_code": 0, "ended": 1.0}, "COMPLETED"),
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
