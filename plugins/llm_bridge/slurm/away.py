"""Wait, without holding a worker slot and without using up a retry, while the login node or slurmctld is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    wait_random_exponential,
)

from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.cancel import go_on_closing, to_the_end
from llm_bridge.slurm.client import SlurmClient, SlurmUnreachable
from llm_bridge.slurm.triggers import EARLIEST_EVENT_SECONDS, ENDED_BY_USER, task_state
from llm_bridge.transport import LoginNodeUnreachable, connect

if TYPE_CHECKING:
    from airflow.sdk import Context

AWAY = (LoginNodeUnreachable, SlurmUnreachable)


class ClusterReachableTrigger(BaseTrigger):
    """Fires when the login node and slurmctld answer.

    :param cluster: name of the cluster file.
    :param directory: stage directory of the task, if it may have submitted a job already: that job is cancelled when
        the user marks the task meanwhile.
    :param deadline: epoch seconds; None for no limit.
    """

    def __init__(self, cluster: str, directory: str | None = None, deadline: float | None = None) -> None:
        super().__init__()
        self.cluster = cluster
        self.directory = directory
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        values = {"cluster": self.cluster, "directory": self.directory, "deadline": self.deadline}
        return "llm_bridge.slurm.away.ClusterReachableTrigger", values

    async def run(self) -> AsyncIterator[TriggerEvent]:
        began = time.monotonic()
        not_there = retry_if_exception_type(AWAY) | retry_if_result(lambda answers: not answers)
        waiting = AsyncRetrying(
            retry=not_there,
            wait=wait_random_exponential(min=3, max=60),
            stop=lambda state: self.deadline is not None and time.time() > self.deadline,
            retry_error_callback=lambda state: False,
            before_sleep=self._say,
        )
        answers: bool = await waiting(self._answers)
        if answers:
            self.log.info("cluster %s answers again after %.0f s", self.cluster, time.monotonic() - began)
        await asyncio.sleep(max(0.0, began + EARLIEST_EVENT_SECONDS - time.monotonic()))
        yield TriggerEvent({"cluster": self.cluster, "answers": answers})

    async def _answers(self) -> bool:
        cluster = await asyncio.to_thread(load_cluster, self.cluster)
        async with connect(cluster) as transport:
            return await SlurmClient(cluster, transport).ping()

    def _say(self, state: RetryCallState) -> None:
        outcome = state.outcome
        why = outcome.exception() if outcome and outcome.failed else "slurmctld does not answer"
        self.log.warning(
            "cluster %s is away, asked again in %.0f s: %s", self.cluster, state.upcoming_sleep, why
        )

    async def on_kill(self) -> None:
        """As ``SlurmJobTrigger.on_kill``; the job, if there is one, is found when the cluster answers again."""
        await to_the_end(self._killed())

    async def _killed(self) -> None:
        state = await task_state(self)
        if self.directory and state in ENDED_BY_USER:
            self.log.info("the task was marked %s: a job of it is cancelled when the cluster answers", state)
            go_on_closing(self.cluster, self.directory)


class WaitsForCluster(BaseOperator):
    """An operator whose ``execute`` may be run again from its beginning."""

    def wait_for(self, cluster: str, error: Exception, directory: str | None = None) -> NoReturn:
        """Defer until the cluster answers, then execute again; ``execution_timeout`` limits the wait."""
        self.log.warning("waiting for cluster %s, this uses up no retry: %s", cluster, error)
        limit = self.execution_timeout
        deadline = time.time() + limit.total_seconds() if limit else None
        self.defer(trigger=ClusterReachableTrigger(cluster, directory, deadline), method_name="execute_again")

    def execute_again(self, context: Context, event: dict[str, Any]) -> Any:
        """The cluster answers again."""
        if not event["answers"]:
            raise AirflowException(
                f"cluster {event['cluster']!r} did not answer before the task's time limit (execution_timeout) had "
                "passed: see the log above for why"
            )
        return self.execute(context)
