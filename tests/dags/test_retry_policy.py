"""The retry policy in Airflow's own hands: serialized with the DAG, and asked when a task fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import structlog
from airflow.sdk import DAG
from airflow.sdk.execution_time.task_runner import _evaluate_retry_policy
from airflow.serialization.serialized_objects import DagSerialization

from llm_bridge.failures.decision import Circumstances, RetryByCause, decide
from llm_bridge.failures.diagnosis import titled
from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.failures.handling import Explained
from llm_bridge.failures.ledger import Ledger
from llm_bridge.slurm.operators import SlurmSubmitOperator

EVENT = {
    "job_id": "7", "cluster": "c", "directory": "/w/a", "ready": False, "info": None, "notice": "x", "result": None,
    "reason": None, "last_lines": [],
}  # fmt: skip


def task(**options: Any) -> SlurmSubmitOperator:
    with DAG("d", schedule=None):
        return SlurmSubmitOperator(task_id="t", cluster="c", script="#!/bin/sh\n", retries=3, **options)


def asked(operator: Any, kind: str) -> Any:
    """What Airflow's task runner hears when the task fails with this class."""
    found = titled(kind, "x")
    error = SlurmJobFailed(EVENT, Explained(found, decide(found, Ledger(), Circumstances())))
    ti: Any = SimpleNamespace(
        task=operator, try_number=1, _ti_context_from_server=SimpleNamespace(max_tries=3)
    )
    return _evaluate_retry_policy(ti, error, structlog.get_logger(), None)


def test_our_operators_have_it_and_their_dags_can_be_serialized() -> None:
    operator = task()
    assert isinstance(operator.retry_policy, RetryByCause)
    written = DagSerialization.to_dict(operator.dag)
    assert '"has_retry_policy": true' in str(written).replace("'", '"').replace("True", "true")


def test_airflow_hears_fail_at_the_first_try_although_three_retries_are_left() -> None:
    assert asked(task(), "cuda_oom").action.value == "fail"
    assert asked(task(), "unknown").action.value == "retry"


def test_a_policy_of_the_users_own_is_asked_instead() -> None:
    class Own(RetryByCause):
        def evaluate(self, *arguments: Any, **options: Any) -> Any:
            return "mine"

    assert task(retry_policy=Own()).retry_policy.evaluate() == "mine"  # type: ignore[union-attr]


def test_a_default_of_the_dag_wins_too() -> None:
    own = RetryByCause()
    with DAG("d", schedule=None, default_args={"retry_policy": own}):
        made = SlurmSubmitOperator(task_id="t", cluster="c", script="#!/bin/sh\n")
    assert made.retry_policy is own
