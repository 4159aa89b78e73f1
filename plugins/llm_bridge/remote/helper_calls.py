"""Call helpers through one process on the login node, which starts with the first call (``remote/login/serve.py``)."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from typing import Any, Protocol

from llm_bridge.exceptions import LoginNodeUnreachable
from llm_bridge.remote import helpers
from llm_bridge.remote.messages import SERVED_AT_ONCE, HelperAnswer, HelperCall, decode, encode
from llm_bridge.remote.transport import (
    CONNECT_TIMEOUT_SECONDS,
    CommandFailed,
    Completed,
    NotStarted,
    Session,
    Transport,
)


class Calls(Protocol):
    """Calls of helpers by one connection."""

    async def call(self, helper: str, request: dict[str, Any], timeout: float) -> Any:
        """Return a helper's answer.

        Args:
            helper: One of ``helpers.SERVED``.
            request: JSON values for the helper's ``main``.
            timeout: Maximum seconds to wait, from the time at which the call is sent.

        Raises:
            NotStarted: The process does not start.
            CommandFailed: The helper failed.
            LoginNodeUnreachable: There is no connection, it broke, or the helper gave no answer within the timeout; the
                helper may nevertheless have done its work.
        """

    async def close(self) -> None:
        """End the process; calls that wait for an answer fail."""


class HelperCalls:
    """Calls of helpers by one connection and one Python, several at a time.

    A call without an answer retires its process: the other calls get their answers, further calls start another one.

    Args:
        transport: Connection to the login node.
        python: Absolute path of the login node's Python.
    """

    def __init__(self, transport: Transport, python: str) -> None:
        self._transport = transport
        self._argv = helpers.argv(python)
        self._newest: _Process | None = None
        self._processes: set[_Process] = set()

    async def call(self, helper: str, request: dict[str, Any], timeout: float) -> Any:
        """Return a helper's answer; see :meth:`Calls.call`."""
        process = await self._process_with_a_slot()
        number, answer = process.expect()
        try:
            session = await asyncio.shield(process.started)
        except BaseException:
            answer.cancel()
            raise
        new = {name: text for name, text in helpers.modules(helper).items() if name not in process.sent}
        process.sent.update(new)
        line = json.dumps(encode(HelperCall(number, helper, request, new))).encode()
        late = LoginNodeUnreachable(
            f"the helper `{helper}` gave no answer within {timeout:.0f} s on the login node"
        )
        # From here on the call has a slot until its end, although its caller may be cancelled.
        limit = asyncio.get_running_loop().call_later(timeout, process.give_up, answer, late)
        answer.add_done_callback(lambda _: limit.cancel())
        posting = asyncio.create_task(session.post(line))
        posting.add_done_callback(functools.partial(_fail, answer))
        answered = await asyncio.shield(answer)
        if answered.error:
            process.sent.difference_update(new)  # one of them may be what failed
            raise CommandFailed([helper], Completed(1, "", answered.error))
        return answered.answer

    async def close(self) -> None:
        """End the processes; calls that wait for an answer fail."""
        serving = {process.serving for process in self._processes}
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)

    async def _process_with_a_slot(self) -> _Process:
        while True:
            process = self._newest
            if process is None or process.retired:
                process = self._newest = _Process(self._transport, self._argv)
                self._processes.add(process)
                process.serving.add_done_callback(
                    functools.partial(lambda ended, _: self._processes.discard(ended), process)
                )
            await process.slots.acquire()
            if not process.retired:
                return process


class _Process:
    """One process on the login node, and the calls that wait for its answers.

    Attributes:
        slots: As many as the process works on calls at the same time.
        started: Its session, or the reason why there is none.
        sent: Names of the modules that it has.
        retired: It gets no further calls.
        serving: Reads its answers, until it ends.
    """

    def __init__(self, transport: Transport, argv: list[str]) -> None:
        self.slots = asyncio.Semaphore(SERVED_AT_ONCE)
        self.started: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self.sent: set[str] = set()
        self.retired = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[HelperAnswer]] = {}
        self.serving = asyncio.create_task(self._serve(transport, argv))

    def expect(self) -> tuple[int, asyncio.Future[HelperAnswer]]:
        """Return the number of a new call, which has taken a slot, and its answer, which frees the slot."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._answered(number, answer))
        return number, answer

    def give_up(self, answer: asyncio.Future[HelperAnswer], error: Exception) -> None:
        """Fail a call that gets no answer. It still takes a thread of the process, which may hang as a whole."""
        if not answer.done():
            answer.set_exception(error)
        self._retire()

    def _answered(self, number: int, answer: asyncio.Future[HelperAnswer]) -> None:
        del self._waiting[number]
        self.slots.release()
        if not answer.cancelled():
            answer.exception()  # retrieved: the caller may have been cancelled
        if self.retired:
            self._end_if_unused()

    def _retire(self) -> None:
        self.retired = True
        for _ in range(SERVED_AT_ONCE):  # whoever waits for a slot looks for another process
            self.slots.release()
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if not self._waiting:
            self.serving.cancel()

    async def _serve(self, transport: Transport, argv: list[str]) -> None:
        """Start the process and give its answers to the calls that wait for them, until the connection breaks."""
        error: Exception = LoginNodeUnreachable("the helpers on the login node were ended")
        try:
            async with transport.session(argv) as session:
                try:
                    session.send(helpers.first_line("serve", {}).rstrip())
                    async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                        await session.receive()
                except (LoginNodeUnreachable, TimeoutError) as ended:
                    raise NotStarted(f"the helpers' process does not start: {ended}") from ended
                self.sent = set(helpers.modules("serve"))
                self.started.set_result(session)
                while True:
                    answered: HelperAnswer = decode(HelperAnswer, json.loads(await session.receive()))
                    if (call := self._waiting.get(answered.id)) and not call.done():
                        call.set_result(answered)
        except Exception as caught:  # each call that waits raises it
            error = caught
        finally:
            futures: list[asyncio.Future[Any]] = [self.started, *self._waiting.values()]
            for future in futures:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # retrieved: nobody may wait for it
            self._retire()


def _fail(answer: asyncio.Future[HelperAnswer], posted: asyncio.Task[None]) -> None:
    """Fail a call whose line could not be sent."""
    if not posted.cancelled() and (error := posted.exception()) and not answer.done():
        answer.set_exception(error)
