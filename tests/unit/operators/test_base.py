"""Base class of operators: waiting for a service, and ``on_kill``."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred

from llm_bridge.exceptions import LoginNodeUnreachable, NotAcceptedYet, RayUnavailable, SlurmUnavailable
from llm_bridge.operators import base
from llm_bridge.operators.base import ClusterOperator, run_with_timeout, task_directory
from llm_bridge.ray.client import RayTarget
from llm_bridge.triggers.reachability import ClusterReachableTrigger
from testing.task_context import Task


class Operator(ClusterOperator):
    """Operator that only returns."""

    def execute(self, context: Any) -> Any:
        return "executed"


@pytest.fixture
def cancelled() -> list[str]:
    return []


@pytest.fixture
def operator(cancelled: list[str]) -> Operator:
    """Return an operator that owns a job."""

    async def cancel() -> None:
        cancelled.append("job")

    owner = Operator(task_id="t", retry_delay=timedelta(seconds=60))
    owner.take_ownership(Task("t").ti, cancel)
    return owner


@pytest.mark.parametrize(
    ("state", "count"), [("failed", 1), ("success", 1), ("running", 0), ("deferred", 0), (None, 0)]
)
def test_on_kill_cancels_the_job_only_if_the_user_marked_the_task(
    operator: Operator, cancelled: list[str], monkeypatch: pytest.MonkeyPatch, state: str | None, count: int
) -> None:
    monkeypatch.setattr(base, "state_of_task", lambda ti: state)
    operator.on_kill()
    assert len(cancelled) == count


def test_on_kill_does_nothing_while_a_trigger_owns_the_job(
    operator: Operator, cancelled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "state_of_task", lambda ti: "failed")
    operator.release_ownership()
    operator.on_kill()
    assert cancelled == []


def test_on_kill_cancels_nothing_if_the_state_cannot_be_read(
    operator: Operator, cancelled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def state(ti: Any) -> str:
        raise RuntimeError("the API does not answer")

    monkeypatch.setattr(base, "state_of_task", state)
    operator.on_kill()
    assert cancelled == []


def test_an_unavailable_cluster_defers_the_task_with_its_stage_directory(operator: Operator) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        operator.wait_for_cluster("local", LoginNodeUnreachable("x"), "/w/t")
    assert deferred.value.method_name == "execute_again"
    assert deferred.value.trigger.serialize()[1] == {
        "cluster": "local",
        "directory": "/w/t",
        "deadline": None,
        "pause": 0.0,
        "waits": 1,
        "reason": "x",
    }


def wait(operator: Operator, error: Exception) -> dict[str, Any]:
    """Return the arguments of the trigger that the operator defers to."""
    with pytest.raises(TaskDeferred) as deferred:
        operator.wait_for_cluster("local", error, "/w/t")
    arguments: dict[str, Any] = deferred.value.trigger.serialize()[1]
    return arguments


def test_a_refusal_for_now_is_waited_out_with_doubling_pauses_up_to_five_minutes(operator: Operator) -> None:
    error = NotAcceptedYet("does not accept the job 'sft' now; waiting for other jobs to end: QOSMaxSubmit")
    pauses = []
    event: dict[str, Any] = {"service": "c", "answers": True, "deadline": None}
    for waits in range(8):
        operator.execute_again(Task("t").context, {**event, "waits": waits})
        pauses.append(wait(operator, error)["pause"])
    assert 8 <= pauses[0] <= 12 and 16 <= pauses[1] <= 24 and 240 <= pauses[-1] <= 360


def test_a_cluster_that_answers_and_fails_again_is_not_asked_every_few_seconds(operator: Operator) -> None:
    assert wait(operator, SlurmUnavailable("munge"))["pause"] == 0
    operator.execute_again(Task("t").context, {"service": "c", "answers": True, "waits": 1, "deadline": None})
    assert wait(operator, SlurmUnavailable("munge"))["pause"] >= 16


def test_the_time_limit_of_the_first_wait_holds_for_all_waits_in_a_row(operator: Operator) -> None:
    operator.execution_timeout = timedelta(seconds=100)
    first = wait(operator, NotAcceptedYet("x"))
    operator.execute_again(
        Task("t").context, {"service": "c", "answers": True, "waits": 1, "deadline": first["deadline"]}
    )
    assert wait(operator, NotAcceptedYet("x"))["deadline"] == first["deadline"]


async def test_a_wait_ends_at_the_time_limit_with_its_reason() -> None:
    reason = "QOSMaxSubmitJobPerUserLimit"
    trigger = ClusterReachableTrigger("c", deadline=time.time() + 0.05, pause=60, waits=3, reason=reason)
    event = await trigger.outcome()
    assert (event["answers"], event["reason"], event["waits"]) == (False, reason, 3)
    with pytest.raises(AirflowException, match=reason):
        Operator(task_id="t").execute_again(Task("t").context, event)


@pytest.mark.parametrize(
    ("target", "error", "trigger", "limited"),
    [
        (RayTarget(address="http://x"), RayUnavailable("x"), "DashboardReachableTrigger", True),
        (RayTarget("local", "7", "/w/c"), RayUnavailable("x"), "DashboardReachableTrigger", False),
        (RayTarget("local", "7", "/w/c"), LoginNodeUnreachable("x"), "ClusterReachableTrigger", False),
    ],
)
def test_an_unavailable_ray_defers_the_task_until_the_service_that_failed_answers(
    operator: Operator, target: RayTarget, error: Exception, trigger: str, limited: bool
) -> None:
    """A dashboard outside of Slurm counts as lost after a while."""
    with pytest.raises(TaskDeferred) as deferred:
        operator.wait_for_ray(target, error)
    path, arguments = deferred.value.trigger.serialize()
    assert path.endswith(trigger) and (arguments["deadline"] is not None) is limited


def test_the_task_executes_again_unless_the_service_did_not_answer_in_time(operator: Operator) -> None:
    context = Task("t").context
    assert operator.execute_again(context, {"service": "cluster c", "answers": True}) == "executed"
    with pytest.raises(AirflowException, match="cluster c did not answer before the task's time limit"):
        operator.execute_again(context, {"service": "cluster c", "answers": False})


def test_a_directory_has_no_character_with_a_meaning_in_a_path(include: Path) -> None:
    (include / "clusters" / "mine.yaml").write_text("ssh_conn_id: null\nworkspace: /w\ngpus_per_node: 8\n")
    task = Task("train.sft", dag_id="d", run_id="manual__2026-11-27T00:00:00+00:00")
    directory = task_directory("mine", task.context)
    assert directory.startswith("/w/d/manual__2026-11-27T") and directory.endswith("/train.sft")
    assert ":" not in directory and "+" not in directory
    task.ti.map_index = 3
    assert task_directory("mine", task.context) == f"{directory}-3"


def test_a_call_is_limited_in_time_and_its_error_is_raised() -> None:
    assert run_with_timeout(5, lambda value: value, "x") == "x"
    with pytest.raises(TimeoutError):
        run_with_timeout(0.05, time.sleep, 1)
    with pytest.raises(ZeroDivisionError):
        run_with_timeout(5, lambda: 1 / 0)
