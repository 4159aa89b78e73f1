"""Call helpers through one process on the login node, which starts with the first call (``remote/login/serve.py``)."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

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


class HelperCalls:
    """Calls of helpers by one connection and one Python, several at a time.

    Args:
        transport: Connection to the login node.
        python: Absolute path of the login node's Python.
    """

    def __init__(self, transport: Transport, python: str) -> None:
        self._transport = transport
        self._argv = helpers.argv(python)
        self._numbers = itertools.count(1)
        self._at_once = asyncio.Semaphore(SERVED_AT_ONCE)
        self._serving: asyncio.Task[None] | None = None
        self._started: asyncio.Future[Session]
        self._waiting: dict[int, asyncio.Future[HelperAnswer]] = {}
        self._sent: set[str] = set()

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
        async with self._at_once:
            number = next(self._numbers)
            answer = self._waiting[number] = asyncio.get_running_loop().create_future()
            try:
                session = await self._opened()
                new = {name: text for name, text in helpers.modules(helper).items() if name not in self._sent}
                self._sent.update(new)
                call = HelperCall(number, helper, request, new)
                async with asyncio.timeout(timeout):
                    await session.post(json.dumps(encode(call)).encode())
                    answered = await answer
            except TimeoutError:
                await self.close()  # it hangs: the next call starts another process
                raise LoginNodeUnreachable(
                    f"the helper `{helper}` gave no answer within {timeout:.0f} s on the login node"
                ) from None
            finally:
                self._waiting.pop(number, None)
        if answered.error:
            raise CommandFailed([helper], Completed(1, "", answered.error))
        return answered.answer

    async def close(self) -> None:
        """End the process; calls that wait for an answer fail."""
        if self._serving:
            self._serving.cancel()
            await asyncio.wait({self._serving})

    async def _opened(self) -> Session:
        if self._serving is None:
            self._started = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(self._started))
        return await asyncio.shield(self._started)

    async def _serve(self, started: asyncio.Future[Session]) -> None:
        """Start the process and give its answers to the calls that wait for them, until the connection breaks."""
        error: Exception = LoginNodeUnreachable("the helpers on the login node were ended")
        try:
            async with self._transport.session(self._argv) as session:
                session.send(helpers.first_line("serve", {}).rstrip())
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                        await session.receive()
                except (LoginNodeUnreachable, TimeoutError) as ended:
                    raise NotStarted(f"the helpers' process does not start: {ended}") from ended
                self._sent = set(helpers.modules("serve"))
                started.set_result(session)
                while True:
                    answered: HelperAnswer = decode(HelperAnswer, json.loads(await session.receive()))
                    if (call := self._waiting.get(answered.id)) and not call.done():
                        call.set_result(answered)
        except Exception as caught:  # each call that waits raises it
            error = caught
        finally:
            self._serving = None
            futures: list[asyncio.Future[Any]] = [started, *self._waiting.values()]
            for future in futures:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # a call that was cancelled does not retrieve it
