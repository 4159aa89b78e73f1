"""Removal of old runs after a scheduled run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.exceptions import LoginNodeUnreachable
from llm_bridge.naming import slug
from llm_bridge.pipeline import keep_runs
from llm_bridge.pipeline.plan import make_plan
from llm_bridge.remote.messages import ActiveJob, OldRunsAnswer, OldRunsRequest, RunFolder


def run(name: str, newest: float, *, trained: bool = True, **values: Any) -> RunFolder:
    return RunFolder(name, "d", name, newest, trained, **values)


DATES = [("backfill", 5), ("scheduled", 28)]


def names(runs: list[RunFolder], keep: int, *protected: str, active: tuple[str, ...] = ()) -> list[str]:
    return [found.name for found in keep_runs.old_runs(runs, keep, "d", {*protected}, {*active})]


def test_runs_before_the_newest_ones_that_trained_are_old() -> None:
    nights = [run(f"n{number}", number, trained=number % 2 == 0) for number in range(8)]
    assert names(nights, 2) == ["n0", "n1", "n2", "n3"]
    assert names(nights, 9) == []


def test_a_backfill_of_old_dates_removes_no_newer_night() -> None:
    """The backfill ran last; a run that was started by hand has no date but that of its last change."""
    day = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    nights = [
        run("x", 0)._replace(name=slug(run_id), run_id=run_id, newest=day + 86400 * 30)
        for run_id in (f"{kind}__2026-11-{number:02}T02:00:00+00:00" for kind, number in DATES)
    ]
    manual = run("by-hand", day + 86400 * 25)
    assert names([*nights, manual], 2) == [slug("backfill__2026-11-05T02:00:00+00:00")]
    assert names([*nights, manual], 1) == [
        *(slug(f"{kind}__2026-11-{number:02}T02:00:00+00:00") for kind, number in DATES[:1]),
        "by-hand",
    ]
    odd = run("scheduled__2026-99-99T02:00:00", day + 86400 * 29)._replace(
        name="scheduled__2026-99-99T02-00-00"
    )
    assert keep_runs.date_of(odd) == odd.newest


def test_a_night_that_trained_nothing_does_not_count() -> None:
    assert names([run("model", 1), *(run(f"n{day}", day, trained=False) for day in range(2, 30))], 1) == []


def test_runs_that_are_protected_active_used_or_of_another_dag_are_kept() -> None:
    newest = run("new", 9)
    assert names([newest, run("a", 1)], 1, "a") == []
    assert names([newest, run("a", 1)], 1, active=("a",)) == []
    assert names([newest, run("a", 1, is_active=True), run("b", 2, is_used=True)], 1) == []
    assert names([newest, run("a", 1)._replace(dag_id="other")], 1) == []
    assert names([newest, run("copy", 1)._replace(run_id="a")], 1) == []


class Client:
    """Stands for SlurmClient."""

    def __init__(self) -> None:
        self.requests: list[OldRunsRequest] = []
        runs = [run(name, number) for number, name in enumerate(["unknown", "running", "old", "r"])]
        self.answers = [
            OldRunsAnswer(runs),
            OldRunsAnswer(removed=["old"], freed=5, more=True),
            OldRunsAnswer(),
        ]
        self.error: Exception | None = None

    async def list_active(self) -> list[ActiveJob]:
        return [ActiveJob("1", "RUNNING", "/w/other/r/sft/attempt-1", {})]

    async def call_helper(self, helper: str, request: OldRunsRequest, answer: Any) -> OldRunsAnswer:
        assert (helper, answer) == ("old_runs", OldRunsAnswer)
        if self.error:
            raise self.error
        self.requests.append(request)
        return self.answers[len(self.requests) - 1]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()

    @asynccontextmanager
    async def open_client(cluster: str) -> AsyncIterator[Client]:
        yield client

    monkeypatch.setattr(keep_runs, "open_client", open_client)
    return client


def remove(run_type: str = "scheduled", keep: int | None = 1) -> None:
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    def state(dag_id: str, run_id: str) -> str:
        if run_id == "unknown":
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR))
        return "running" if run_id == "running" else "success"

    ti = SimpleNamespace(dag_id="d", run_id="r", get_dagrun_state=state)
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(run_type=run_type)}
    made = make_plan({"recipe": "tiny_cpu", "cluster": "local"}, "d", "r").model_dump(mode="json")
    made["recipe"]["keep_runs"] = keep
    keep_runs.remove_old_runs(context, made, None)


def test_only_runs_that_have_ended_in_this_airflow_are_removed_until_nothing_is_left(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        remove()
    assert [request.remove for request in client.requests] == [None, ["old"], ["old"]]
    assert client.requests[0].directory.endswith("/d")
    assert "unknown is kept: not in this Airflow's database" in caplog.text
    assert (
        "running is kept: running" in caplog.text and "/d/old" in caplog.text and "were freed" in caplog.text
    )


def test_without_the_key_or_in_a_run_started_by_hand_nothing_is_asked(client: Client) -> None:
    remove(keep=None)
    remove("manual")
    assert not client.requests


def test_a_cluster_that_does_not_answer_is_a_warning(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.error = LoginNodeUnreachable("Connection refused")
    remove()
    assert "old runs were not removed: Connection refused" in caplog.text
