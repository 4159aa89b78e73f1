"""The Jobs API's client by address, where nobody answers."""

from __future__ import annotations

import socket
import time

import pytest

from llm_bridge.ray.client import RayTarget, RayUnreachable, ray_client


async def test_a_dashboard_that_takes_the_connection_and_answers_nothing_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one whose process is stopped: waiting for it for ever would neither give it up nor notice a hang."""
    monkeypatch.setattr("llm_bridge.ray.client.ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        async with ray_client(RayTarget(address=address)) as client:
            with pytest.raises(RayUnreachable, match="does not answer"):
                await client.job("any")
        assert time.monotonic() - began < 5
