"""Provide the base class of llm-bridge's triggers: serialization, a minimum delay before the event, and ``on_kill``."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from llm_bridge.slurm.cancellation import shielded

# A trigger that fires right after its task deferred fails the task: the scheduler may process the event before the
# worker's exit (airflow#66374, #67287; 3 of 16 tasks on 3.3.2, none with 5 s).
MIN_EVENT_DELAY_SECONDS = 5.0
TERMINAL = frozenset({"success", "failed", "skipped", "removed", "upstream_failed"})
# When Airflow moves a trigger to another triggerer it also ends the first instance, possibly after the task has resumed
# and succeeded. A trigger that cannot distinguish that from "the user marked the task success" uses these states.
ENDED_BY_USER = TERMINAL - {"success"}


class LlmBridgeTrigger(BaseTrigger):
    """Base class of triggers; a subclass keeps its constructor's arguments as attributes of the same names."""

    # The task's states in which `on_kill` cancels what the trigger waits for.
    kill_states = TERMINAL

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the constructor's arguments, as Airflow stores them."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        kind = type(self)
        return f"{kind.__module__}.{kind.__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire once, with the payload that :meth:`outcome` returns."""
        started = time.monotonic()
        event = await self._outcome_or_cancel()
        await asyncio.sleep(max(0.0, started + MIN_EVENT_DELAY_SECONDS - time.monotonic()))
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _outcome_or_cancel(self) -> dict[str, Any]:
        """Return :meth:`outcome`, which runs in a task of its own; a cancellation keeps its message.

        Airflow calls ``on_kill`` only for a CancelledError with its own message (``TriggerRunner.run_trigger``), and
        asgiref's ``sync_to_async`` for one raises another without it: a job would run on that the user has cancelled.
        """
        outcome = asyncio.ensure_future(self.outcome())
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            outcome.cancel()
            await asyncio.wait({outcome})
            raise

    async def outcome(self) -> dict[str, Any]:
        """Wait, and return the event's payload; operators that wait in the worker call this directly."""
        raise NotImplementedError

    async def on_kill(self) -> None:
        """Cancel what the trigger waits for if the user marked or cleared the task, or the run failed or timed out.

        Airflow 3.3.2 also calls this when the trigger moves to another triggerer (airflow#73454), and late after a
        clear, when the next try may already follow the job. So this reads the task's state first.
        """
        await shielded(self._kill_if_marked())

    async def _kill_if_marked(self) -> None:
        state = await task_state(self)
        if state in self.kill_states:
            self.log.info("task was marked %s; cancelling", state)
            await self.kill()
        else:
            self.log.info("trigger stopped while the task is %s; nothing is cancelled", state)

    async def kill(self) -> None:
        """Cancel what the trigger waits for."""


async def task_state(trigger: BaseTrigger) -> str | None:
    """Return the state that Airflow's API reports for the task of ``trigger``; None while it has none."""
    return await sync_to_async(state_of_task)(trigger.task_instance)


def state_of_task(ti: Any) -> str | None:
    """Return the state that Airflow's API reports for a task instance; None while it has none."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    # The key of a mapped task ends with its index.
    return next((str(s) for key, s in states.get(ti.run_id, {}).items() if key.startswith(ti.task_id)), None)
