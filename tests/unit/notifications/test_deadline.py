"""Deadline of a run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from llm_bridge.notifications.deadline import deadline_alert, late


@pytest.fixture(autouse=True)
def hook(include: Any, posts: Any) -> None:
    include(http={"conn_id": "hook"})


async def test_a_late_run_causes_an_alert_unless_it_has_ended(posts: Any) -> None:
    run = {"dag_id": "nightly", "dag_run_id": "r 1", "state": "running", "queued_at": "2026-11-25T22:00:00Z"}
    await late(hours=14, context={"dag_run": run})
    ((_, said),) = posts
    assert said["title"] == "[llm-bridge] nightly: not finished after 14 h"
    assert said["links"]["Run"] == "https://airflow.example.org/dags/nightly/runs/r%201"
    # Airflow keeps the deadline of a run that has failed.
    await late(hours=14, context={"dag_run": run | {"state": "failed"}})
    assert len(posts) == 1


async def test_a_run_that_has_not_begun_says_so_and_one_of_a_backfill_waits_for_its_turn(posts: Any) -> None:
    run = {"dag_id": "nightly", "dag_run_id": "r", "state": "queued", "queued_at": "2026-11-25T22:00:00Z"}
    await late(hours=14, context={"dag_run": run | {"run_type": "backfill"}})
    assert not posts
    await late(hours=14, context={"dag_run": run | {"run_type": "scheduled"}})
    ((_, said),) = posts
    assert said["facts"]["State"].startswith("queued: it has not begun")
    await late(hours=14, context={"dag_run": run | {"run_type": "backfill", "state": "running"}})
    assert len(posts) == 2 and "State" not in posts[1][1]["facts"]


def test_only_dags_with_a_limit_have_a_deadline(include: Any) -> None:
    assert deadline_alert("nightly") is None
    include(http={"conn_id": "hook"}, late_after_hours={"nightly": 14})
    alert = deadline_alert("nightly")
    assert alert is not None and alert.interval == timedelta(hours=14)
    assert deadline_alert("weekly") is None
    include(late_after_hours={"nightly": 14})
    assert deadline_alert("nightly") is None, "no channel is configured"
