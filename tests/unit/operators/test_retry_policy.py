"""The retry policy: by itself, serialized with a DAG, and called by Airflow when a task fails."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.execution_time.task_runner import _evaluate_retry_policy
from airflow.serialization.serialized_objects import DagSerialization

from llm_bridge.diagnosis.explain import FailureReport
from llm_bridge.diagnosis.progress_ledger import ProgressLedger
from llm_bridge.diagnosis.report import titled
from llm_bridge.diagnosis.retry import RetryContext, decide
from llm_bridge.exceptions import ConfigError, NoConnection
from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.operators.retry_policy import DiagnosisRetryPolicy, with_policy
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.slurm.events import EndReason, SlurmJobEvent

EVENT = SlurmJobEvent("7", "c", "/w/a", EndReason.UNWATCHED, notice="x")


def task(**options: Any) -> SlurmSubmitOperator:
    with DAG("d", schedule=None):
        return SlurmSubmitOperator(task_id="t", cluster="c", script="#!/bin/sh\n", retries=3, **options)


def failure(kind: str, node: str | None = None) -> SlurmJobFailed:
    found = titled(kind, "x", node=node)
    return SlurmJobFailed(EVENT, FailureReport(found, decide(found, ProgressLedger(), RetryContext())))


def airflows_decision(operator: Any, kind: str) -> Any:
    """Return what Airflow's task runner gets from the policy when the task fails with this class."""
    ti: Any = SimpleNamespace(
        task=operator, try_number=1, _ti_context_from_server=SimpleNamespace(max_tries=3)
    )
    return _evaluate_retry_policy(ti, failure(kind), structlog.get_logger(), None)


@pytest.mark.parametrize(
    ("kind", "node", "action", "delay"),
    [
        ("cuda_oom", None, RetryAction.FAIL, None),
        ("unknown", None, RetryAction.RETRY, None),
        ("network", "n2", RetryAction.RETRY, timedelta(seconds=5)),
    ],
)
def test_the_policy_follows_the_decision_of_the_exception(
    kind: str, node: str | None, action: RetryAction, delay: timedelta | None
) -> None:
    decision = DiagnosisRetryPolicy().evaluate(failure(kind, node), 1, 3)
    assert (decision.action, decision.retry_delay) == (action, delay)


@pytest.mark.parametrize("error", [ConfigError("wrong"), NoConnection("none")])
def test_a_wrong_configuration_is_not_retried(error: Exception) -> None:
    assert DiagnosisRetryPolicy().evaluate(error, 1, 3).action is RetryAction.FAIL


def test_an_exception_without_a_decision_follows_the_tasks_own_settings() -> None:
    decision = DiagnosisRetryPolicy().evaluate(ValueError("x"), 1, 3)
    assert decision.action is RetryAction.DEFAULT and "ValueError has no diagnosis" in str(decision.reason)
    undiagnosed = DiagnosisRetryPolicy().evaluate(SlurmJobFailed(EVENT), 1, 3)
    assert undiagnosed.action is RetryAction.DEFAULT


def test_the_policy_can_be_serialized() -> None:
    policy = DiagnosisRetryPolicy()
    assert isinstance(policy.deserialize(policy.serialize()), DiagnosisRetryPolicy)


def test_operators_have_the_policy_and_their_dags_can_be_serialized() -> None:
    operator = task()
    assert isinstance(operator.retry_policy, DiagnosisRetryPolicy)
    written = DagSerialization.to_dict(operator.dag)
    assert '"has_retry_policy": true' in str(written).replace("'", '"').replace("True", "true")


def test_airflow_gets_fail_after_the_first_try_although_three_retries_are_left() -> None:
    assert airflows_decision(task(), "cuda_oom").action.value == "fail"
    assert airflows_decision(task(), "unknown").action.value == "retry"


def test_a_policy_of_the_user_takes_precedence() -> None:
    class Own(DiagnosisRetryPolicy):
        def evaluate(self, *arguments: Any, **options: Any) -> Any:
            return "mine"

    assert task(retry_policy=Own()).retry_policy.evaluate() == "mine"  # type: ignore[union-attr]
    own = DiagnosisRetryPolicy()
    assert with_policy({"retry_policy": own})["retry_policy"] is own
    assert isinstance(with_policy({})["retry_policy"], DiagnosisRetryPolicy)
    assert isinstance(with_policy({"retry_policy": None})["retry_policy"], DiagnosisRetryPolicy)


def test_a_policy_in_the_dags_default_args_takes_precedence() -> None:
    own = DiagnosisRetryPolicy()
    with DAG("d", schedule=None, default_args={"retry_policy": own}):
        operator = SlurmSubmitOperator(task_id="t", cluster="c", script="#!/bin/sh\n")
    assert operator.retry_policy is own
