"""Retry tasks according to the diagnosis of their failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from llm_bridge.diagnosis.classes import Action
from llm_bridge.diagnosis.retry import Decision
from llm_bridge.exceptions import ConfigError

if TYPE_CHECKING:
    from airflow.sdk import Context


class DiagnosisRetryPolicy(RetryPolicy):
    """Retry policy of llm-bridge's operators; it follows the ``decision`` of their exceptions.

    It cannot give a task more tries than ``retries``. After failures that must not use a retry (a preemption, a node
    failure, the time limit) the operators resume within the try. A :class:`~llm_bridge.exceptions.ConfigError` is never
    retried. Any other exception without a decision follows the task's own settings.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Return the decision for a failed try; see :meth:`airflow.sdk.RetryPolicy.evaluate`. Airflow logs its reason.

        Args:
            exception: Exception of the try.
            try_number: Number of the try, from 1 on.
            max_tries: Number of retries that the task has.
            context: The task's context.
        """
        if isinstance(exception, ConfigError):
            return RetryDecision.fail("a retry cannot help: the configuration is wrong")
        decision: Decision | None = getattr(exception, "decision", None)
        if decision is None:
            reason = (
                f"{type(exception).__name__} has no diagnosis: retrying according to retries and retry_delay"
            )
            return RetryDecision(reason=reason)
        if decision.action is Action.STOP:
            return RetryDecision.fail(decision.text)
        return RetryDecision.retry(decision.delay, decision.text)

    def serialize(self) -> dict[str, Any]:
        """Return the policy's settings, an empty dict."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> RetryPolicy:
        """Return the policy from the dict that :meth:`serialize` made."""
        return cls()


def with_policy(options: dict[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments, with :class:`DiagnosisRetryPolicy` unless the user has set a policy.

    Airflow's mapped operators pass None for an argument that was not set; arguments of a DAG or a task group are passed
    as ``default_args``.

    Args:
        options: Keyword arguments of the operator; changed in place.
    """
    given = options.get("retry_policy") or (options.get("default_args") or {}).get("retry_policy")
    options["retry_policy"] = given or DiagnosisRetryPolicy()
    return options
