"""Wait while a login node, slurmctld or a Ray dashboard is unavailable; uses no worker slot and no retry."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from llm_bridge.exceptions import ClusterUnavailable, RayRequestError, ServiceUnavailable
from llm_bridge.ray import cluster_job
from llm_bridge.ray.client import RayTarget, ray_client
from llm_bridge.slurm.cancellation import close_in_background
from llm_bridge.slurm.client import open_client
from llm_bridge.triggers.base import ENDED_BY_USER, LlmBridgeTrigger


class ReachableTrigger(LlmBridgeTrigger):
    """Fire when a service answers, or when ``deadline`` has passed.

    The event is ``{"service", "answers", "reason", "waits", "deadline"}``; ``reason`` is the last error.

    Attributes:
        deadline: Epoch seconds; None for no limit.
        directory: Stage directory whose job `on_kill` cancels; None if the task cannot have submitted one yet.
        pause: Seconds to wait before the first poll: the service answered, and refused the task's request for now.
        waits: Number of the task's waits in a row, which is passed on in the event.
    """

    kill_states = ENDED_BY_USER
    deadline: float | None
    directory: str | None
    pause: float = 0.0
    waits: int = 0

    def __init__(self) -> None:
        super().__init__()
        self._why: Exception | str = "no answer"

    @property
    def service(self) -> str:
        """Name of the service in logs and errors."""
        raise NotImplementedError

    async def outcome(self) -> dict[str, Any]:
        """Poll the service, with backoff, until it answers; return the event's payload."""
        started = time.monotonic()
        if self.pause:
            limit = self.pause if self.deadline is None else self.deadline - time.time()
            await asyncio.sleep(max(0.0, min(self.pause, limit)))
            if limit < self.pause:
                return self._event(False)
        waiting = AsyncRetrying(
            retry=retry_if_result(lambda answers: not answers),
            wait=wait_random_exponential(min=3, max=60),
            stop=lambda state: self.deadline is not None and time.time() > self.deadline,
            retry_error_callback=lambda state: False,
            before_sleep=self._log_retry,
        )
        answers: bool = await waiting(self._answers)
        if answers and not self.pause:
            self.log.info("%s answers again after %.0f s", self.service, time.monotonic() - started)
        return self._event(answers)

    def _event(self, answers: bool) -> dict[str, Any]:
        event = {"service": self.service, "answers": answers, "reason": str(self._why)}
        return event | {"waits": self.waits, "deadline": self.deadline}

    async def _answers(self) -> bool:
        raise NotImplementedError

    def _log_retry(self, state: RetryCallState) -> None:
        self.log.warning(
            "%s unreachable; retrying in %.0f s: %s", self.service, state.upcoming_sleep, self._why
        )


class ClusterReachableTrigger(ReachableTrigger):
    """Fire when the login node and slurmctld answer.

    Args:
        cluster: Name of the cluster file.
        directory: Stage directory of the task if it may already have submitted a job, which is then cancelled when the
            user marks the task; else None.
        deadline: Epoch seconds; None for no limit.
        pause: Seconds to wait before the first poll.
        waits: Number of the task's waits in a row.
        reason: Error that the task waits for the end of.
    """

    def __init__(
        self,
        cluster: str,
        directory: str | None = None,
        deadline: float | None = None,
        *,
        pause: float = 0.0,
        waits: int = 0,
        reason: str = "no answer",
    ) -> None:
        super().__init__()
        self.cluster = cluster
        self.directory = directory
        self.deadline = deadline
        self.pause = pause
        self.waits = waits
        self.reason = reason
        self._why = reason

    @property
    def service(self) -> str:
        """Name of the service in logs and errors."""
        return f"cluster {self.cluster}"

    async def _answers(self) -> bool:
        try:
            async with open_client(self.cluster) as client:
                self._why = "slurmctld does not answer"
                return await client.ping()
        except ClusterUnavailable as error:
            self._why = error
            return False

    async def kill(self) -> None:
        """Cancel the task's job, if there is one, as soon as the cluster answers."""
        if self.directory:
            close_in_background(self.cluster, self.directory)


class DashboardReachableTrigger(ReachableTrigger):
    """Fire when a Ray dashboard answers, or when the Slurm job of its cluster has ended.

    Args:
        target: :class:`~llm_bridge.ray.client.RayTarget` as a dict.
        directory: Stage directory of a Ray cluster that the task started itself, whose job is then cancelled when the
            user marks the task; else None.
        deadline: Epoch seconds; None for no limit.
    """

    def __init__(
        self, target: dict[str, Any], directory: str | None = None, deadline: float | None = None
    ) -> None:
        super().__init__()
        self.target = target
        self.directory = directory
        self.deadline = deadline

    @property
    def service(self) -> str:
        """Name of the service in logs and errors."""
        return f"Ray dashboard of {self.target['cluster'] or self.target['address']}"

    async def _answers(self) -> bool:
        target = RayTarget(**self.target)
        try:
            async with ray_client(target) as client:
                await client.job("llm-bridge-probe")
            return True
        except RayRequestError:
            return True  # the task gets the same error and reports it
        except ServiceUnavailable as error:
            self._why = error
        try:
            return await cluster_job.ended(target) is not None
        except ClusterUnavailable:
            return False

    async def kill(self) -> None:
        """Cancel the Ray cluster that the task started, if there is one, as soon as Slurm answers."""
        if self.directory:
            close_in_background(self.target["cluster"], self.directory)
