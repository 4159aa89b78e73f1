"""Scheduled runs: those after the first one find nothing to train, and their messages say so."""

from __future__ import annotations

from typing import Any

from llm_bridge.naming import slug
from testing.waiting import until

DAG = "often"


def test_a_night_in_which_nothing_has_changed_trains_nothing_and_its_message_says_so(stack: Any) -> None:
    stack.ready(DAG)
    # Three, because a pull of earlier XComs differs between one earlier run and several.
    first, *others = until(lambda: _runs(stack, ended=True)[2:] and _runs(stack, ended=True), 1800)
    stack.api.ask("PATCH", f"/api/v2/dags/{DAG}", json={"is_paused": True})
    # A run of a paused DAG goes no further, and the next one may have begun before the pause.
    for active in set(_runs(stack)) - set(_runs(stack, ended=True)):
        stack.api.fail(DAG, active)
    until(lambda: _runs(stack, ended=True) == _runs(stack), 600, what="no run is active")
    states = stack.states(DAG, first)
    assert states["sft.train"] == states["sft.merge"] == states["summary"] == "success", states
    posts = {post["facts"]["Run"]: post for post in until(lambda: _of(stack, first, *others[:2]), 60)}
    assert "Not trained" not in posts[first]["facts"]
    for later in others[:2]:
        states = stack.states(DAG, later)
        assert states["prepare.compare"] == states["summary"] == "success", states
        assert states["sft.train"] == states["sft.merge"] == states["upload.run"] == "skipped", states
        assert f"nothing has changed since run {first}" in stack.log(DAG, later, "sft.train")
        assert posts[later]["facts"]["Not trained"] == f"nothing has changed since run {first}"
        assert "old runs were not removed" not in stack.log(DAG, later, "summary")
    trained = [path.parent for path in (stack.site.workspace / DAG).glob("*/sft")]
    assert [path.name for path in trained] == [slug(first)], "keep_runs counts and keeps the run that trained"


def _runs(stack: Any, ended: bool = False) -> list[str]:
    """Return the ids of the DAG's runs, the oldest first; with ``ended``, of those that have ended."""
    found = stack.api.ask("GET", f"/api/v2/dags/{DAG}/dagRuns?order_by=logical_date")["dag_runs"]
    return [run["dag_run_id"] for run in found if not ended or run["state"] in ("success", "failed")]


def _of(stack: Any, *runs: str) -> list[dict[str, Any]] | None:
    """Return the messages about some runs; None until all have come."""
    found = [body for _, body in stack.posts if body["facts"].get("Run") in runs]
    return found if len(found) >= len(runs) else None
