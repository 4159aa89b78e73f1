"""Wait, without holding a worker slot and without using up a retry, while a Ray dashboard does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from airflow.triggers.base import BaseTrigger, TriggerEvent
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from llm_bridge.ray import allocation
from llm_bridge.ray.client import RayRefused, RayTarget, RayUnreachable, as_target, ray_client
from llm_bridge.slurm.away import AWAY, WaitsForCluster
from llm_bridge.slurm.cancel import go_on_closing, to_the_end
from llm_bridge.slurm.triggers import EARLIEST_EVENT_SECONDS, ENDED_BY_USER, task_state

RAY_AWAY = (*AWAY, RayUnreachable)
# Without an allocation to look at, an address that has been dead for so long is given up.
GIVE_UP_SECONDS = 1800.0


class DashboardReachableTrigger(BaseTrigger):
    """Fires when a Ray dashboard answers, or when the Slurm job of its cluster has ended.

    :param target: :class:`~llm_bridge.ray.client.RayTarget` as a dict.
    :param directory: stage directory of a Ray cluster that is the task's own: its job is cancelled when the user marks
        the task meanwhile.
    :param deadline: epoch seconds; None for no limit.
    """

    def __init__(
        self, target: dict[str, Any], directory: str | None = None, deadline: float | None = None
    ) -> None:
        super().__init__()
        self.target = target
        self.directory = directory
        self.deadline = deadline
        self._why: Exception | str = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        values = {"target": self.target, "directory": self.directory, "deadline": self.deadline}
        return "llm_bridge.ray.away.DashboardReachableTrigger", values

    async def run(self) -> AsyncIterator[TriggerEvent]:
        began = time.monotonic()
        waiting = AsyncRetrying(
            retry=retry_if_result(lambda answers: not answers),
            wait=wait_random_exponential(min=3, max=60),
            stop=lambda state: self.deadline is not None and time.time() > self.deadline,
            retry_error_callback=lambda state: False,
            before_sleep=self._say,
        )
        answers: bool = await waiting(self._answers)
        await asyncio.sleep(max(0.0, began + EARLIEST_EVENT_SECONDS - time.monotonic()))
        yield TriggerEvent({"cluster": self.target["cluster"] or self.target["address"], "answers": answers})

    async def _answers(self) -> bool:
        target = RayTarget(**self.target)
        try:
            async with ray_client(target) as client:
                await client.job("is-anybody-there")
            return True
        except RayRefused:
            return True  # the task itself says so
        except RAY_AWAY as error:
            self._why = error
        try:
            return await allocation.ended(target) is not None
        except AWAY:
            return False

    def _say(self, state: RetryCallState) -> None:
        self.log.warning("Ray is away, asked again in %.0f s: %s", state.upcoming_sleep, self._why)

    async def on_kill(self) -> None:
        """As ``SlurmJobTrigger.on_kill``."""
        await to_the_end(self._killed())

    async def _killed(self) -> None:
        state = await task_state(self)
        if self.directory and state in ENDED_BY_USER:
            self.log.info("the task was marked %s: its Ray cluster is cancelled when Slurm answers", state)
            go_on_closing(self.target["cluster"], self.directory)


class WaitsForRay(WaitsForCluster):
    """An operator whose ``execute`` may be run again from its beginning when Ray, or its cluster, answers again."""

    def wait_for_ray(self, target: RayTarget, error: Exception, directory: str | None = None) -> NoReturn:
        """Defer until what did not answer does; ``execution_timeout`` limits the wait.

        :param directory: stage directory of a Ray cluster that is the task's own.
        """
        if target.cluster and isinstance(error, AWAY):
            self.wait_for(target.cluster, error, directory)
        self.log.warning("waiting for Ray, this uses up no retry: %s", error)
        limit = self.execution_timeout
        seconds = limit.total_seconds() if limit else None if target.cluster else GIVE_UP_SECONDS
        deadline = None if seconds is None else time.time() + seconds
        trigger = DashboardReachableTrigger(as_target(target), directory, deadline)
        self.defer(trigger=trigger, method_name="execute_again")
