"""When a Ray cluster is ready, and when it is over."""

from __future__ import annotations

import pytest

from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.node.ray import health
from llm_bridge.remote.node.ray.health import HealthMonitor, Observation


def row(name: str, gpus: int = 8, state: str = "ALIVE", message: str | None = None) -> dict:
    return {
        "node_name": name,
        "state": state,
        "state_message": message,
        "resources_total": {"GPU": float(gpus)},
    }


def report(state: str, message: str = "", at: float = 0.0) -> dict:
    return {"state": state, "message": message, "at": at}


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ([], {"n1": "has not joined", "n2": "has not joined"}),
        ([row("n1")], {"n2": "has not joined"}),
        ([row("n1"), row("n2", gpus=6)], {"n2": "joined with 6 of 8 GPUs"}),
        ([row("n1"), row("n2"), row("stranger")], {}),
        ([row("n1"), row("n2", state="DEAD")], {"n2": "has not joined"}),
        (
            [row("n1"), {"node_name": "n2", "state": "ALIVE", "resources_total": None}],
            {"n2": "joined with 0 of 8 GPUs"},
        ),
    ],
)
def test_a_cluster_is_ready_when_every_node_is_alive_with_its_gpus(rows: list[dict], missing: dict) -> None:
    assert health.missing(rows, ["n1", "n2"], 8) == missing


def test_nodes_that_did_not_join_are_named_with_their_last_report() -> None:
    gone = {"n2": "has not joined", "n3": "has not joined", "n4": "joined with 4 of 8 GPUs"}
    verdict = health.not_joined(
        gone, {"n2": report("waiting", "waits for the head at 10.0.0.1:10000")}, 5, 15
    )
    assert verdict.reason == (
        "3 of 5 nodes did not join within 15 minutes: n2 (waits for the head at 10.0.0.1:10000), n3 (never"
        " reported: srun could not start its task), n4 (joined with 4 of 8 GPUs)"
    )
    assert verdict.as_reason().nodes == ("n2", "n3", "n4") and verdict.exit_code == 1


def test_the_gcs_has_to_fail_three_times_in_a_row() -> None:
    monitor = HealthMonitor(["n1", "n2"], 0, None)
    assert [
        monitor.update(Observation(t, gcs_error=error)) for t, error in enumerate(["x", "x", None, "x", "x"])
    ] == [None] * 5
    verdict = monitor.update(Observation(6, gcs_error="HTTP 503"))
    assert verdict is not None
    assert verdict.as_reason() == Reason(
        "GCS on n1 does not answer (HTTP 503)", retry=True, kind="gcs_dead", nodes=("n1",)
    )


def test_a_worker_that_ray_has_marked_dead_is_named_at_once() -> None:
    rows = [row("n1"), row("n2", state="DEAD", message="missing too many heartbeats")]
    verdict = HealthMonitor(["n1", "n2"], 0, None).update(Observation(1, rows=rows))
    assert verdict is not None
    assert verdict.reason == "worker n2 died (missing too many heartbeats)"


def test_of_several_failed_nodes_the_first_one_is_the_cause() -> None:
    reports = {"n1": report("failed", "lost its head", 20), "n2": report("failed", "was killed", 10)}
    verdict = HealthMonitor(["n1", "n2"], 0, None).update(Observation(1, reports=reports, step_code=1))
    assert verdict is not None
    assert verdict.nodes == ("n2", "n1")
    assert verdict.reason == "n2: was killed; n1: lost its head"


def test_the_end_of_srun_ends_the_cluster() -> None:
    reports = {"n1": report("running"), "n2": report("stopped")}
    verdict = HealthMonitor(["n1", "n2"], 0, None).update(Observation(1, reports=reports, step_code=137))
    assert verdict is not None
    assert "137" in verdict.reason and verdict.nodes == ("n1",)


def test_a_cluster_is_idle_only_if_it_is_certain_that_no_job_ran_for_that_time() -> None:
    monitor = HealthMonitor(["n1"], 0, idle_minutes=1)
    assert monitor.update(Observation(59, busy=False)) is None
    assert monitor.update(Observation(61, busy=True)) is None
    assert monitor.update(Observation(100, busy=None)) is None, "unknown is never read as idle"
    assert monitor.update(Observation(159, busy=False)) is None
    verdict = monitor.update(Observation(160, busy=False))
    assert verdict is not None
    assert (verdict.reason, verdict.exit_code) == ("idle", 0)


def test_without_idle_minutes_a_cluster_never_ends_itself() -> None:
    assert HealthMonitor(["n1"], 0, None).update(Observation(1e9, busy=False)) is None


@pytest.mark.parametrize(("states", "busy"), [([], False), (["SUCCEEDED", "FAILED", "STOPPED"], False)])
def test_ended_jobs_do_not_keep_a_cluster_busy(states: list[str], busy: bool) -> None:
    assert health.busy([{"status": state} for state in states]) is busy
    assert health.busy([{"status": state} for state in [*states, "PENDING"]]) is True
