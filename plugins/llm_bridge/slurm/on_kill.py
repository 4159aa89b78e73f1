"""What an operator does when its process on the worker is told to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from airflow.sdk import BaseOperator

from llm_bridge.slurm.cancel import CANCEL_SECONDS
from llm_bridge.slurm.triggers import TERMINAL, state_of_task

# How long on_kill waits for the API's word on the task.
STATE_SECONDS = 5.0


class CancelsIfMarked(BaseOperator):
    """An operator that cancels its job when the user marks the task before it defers, or while it waits in the worker.

    Airflow calls ``on_kill`` then, and also when the worker itself is to stop (a rolling update): in that case the next
    try finds the job, so it is left alone.
    """

    # While this process answers for the job: whose it is, and what cancels it.
    _answering: tuple[Any, Callable[[], Coroutine[Any, Any, Any]]] | None = None

    def answer_for_job(self, ti: Any, cancel: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """From here on, ``on_kill`` runs ``cancel()`` if the user has marked the task."""
        self._answering = (ti, cancel)

    def hand_job_over(self) -> None:
        """From here on a trigger answers for the job."""
        self._answering = None

    def on_kill(self) -> None:
        """Called by Airflow; see the class's text."""
        if not self._answering:
            return
        ti, cancel = self._answering
        # Called from a signal handler: a loop may be running in this thread, and the handler may have interrupted a
        # question to Airflow's API, which would then wait for itself. So both are done elsewhere, and not for ever.
        try:
            state = in_thread(STATE_SECONDS, state_of_task, ti)
        except Exception as error:
            self.log.warning("the job is left alone: what became of the task is unknown (%r)", error)
            return
        if state not in TERMINAL:
            self.log.info("the task is %s: the job is left alone", state)
            return
        self.log.info("the task was marked %s: cancelling its job", state)
        in_thread(CANCEL_SECONDS, asyncio.run, cancel())


def in_thread(seconds: float, call: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``call`` in a thread of its own, which does not keep the process from ending.

    :raises TimeoutError: it takes longer than ``seconds``.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(timeout=seconds)
