"""Whose turn it is to show a job's output and to tell its end, as the watcher sees it."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.slurm import watcher
from llm_bridge.slurm.watcher import _Watched

SEEN: dict[str, Any] = {
    "files": {},
    "log": "",
    "offset": 0,
    "skipped": 0,
    "more": False,
    "size": None,
    "held": None,
}


@pytest.fixture
def follower() -> _Watched:
    job = _Watched("7", "/w/attempt-1", ("outcome.json",), {"follower": "a"})
    job.claimed, job.offset = True, 10
    return job


def test_a_follower_that_was_replaced_neither_reads_nor_ends(follower: _Watched) -> None:
    assert follower.settled and follower.request()["log"]
    follower.take(SEEN | {"taken": True})
    assert not follower.settled and follower.request()["log"] is None


def test_a_follower_that_is_still_there_after_a_while_takes_its_place_again(
    follower: _Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The triggerer that had taken over was killed, and Airflow gave the trigger back to this one."""
    follower.take(SEEN | {"taken": True})
    assert not follower.request()["claim"]
    monkeypatch.setattr(watcher, "RECLAIM_SECONDS", -1.0)
    follower.take(SEEN | {"taken": True})
    assert follower.request()["claim"] and not follower.settled
    follower.claimed, follower.offset = True, 10
    follower.take(SEEN | {"taken": False})
    assert follower.settled and follower.request()["log"]
