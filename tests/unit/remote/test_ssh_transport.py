"""Channels of an SSH connection; the server is one of asyncssh. tests/operators has a real sshd."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tenacity import wait_none

from llm_bridge.exceptions import LoginDenied
from llm_bridge.remote import ssh_transport
from llm_bridge.remote.ssh_transport import SshTransport
from tests.unit.remote.login_node import LoginNode

ECHO = "while read line; do printf '%08d%s' ${#line} $line; done"
# asyncssh's server, when a command's input ends before its output.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'Queue.join'")


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoginNode]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    login_node = LoginNode(tmp_path, monkeypatch)
    await login_node.listen()
    yield login_node
    await login_node.close()


@pytest.mark.parametrize("allowed", [1, 2])
async def test_a_site_that_allows_few_sessions_gets_more_connections(
    node: LoginNode, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """The poller and the helpers each have a session as long as they run; a command is a third one."""
    monkeypatch.setattr(ssh_transport._start.retry, "wait", wait_none())  # type: ignore[attr-defined]
    node.max_sessions = allowed
    transport = SshTransport("slurm_x")
    async with (
        transport.session(["sh", "-c", ECHO]) as first,
        transport.session(["sh", "-c", ECHO]) as second,
    ):
        for number in range(2):
            done = await asyncio.gather(*(transport.run(["echo", str(n)]) for n in range(4)))
            assert [one.stdout for one in done] == [f"{n}\n" for n in range(4)]
            assert await first.ask(b"one") == b"one" and await second.ask(b"two") == b"two", number
    assert 2 <= node.logins <= 8
    await transport.close()


async def test_a_login_that_fails_is_tried_once_for_all_that_wait_for_it(
    node: LoginNode, tmp_path: Path
) -> None:
    node.accepts = False
    transport = SshTransport("slurm_x")
    outcomes = await asyncio.gather(*(transport.run(["true"]) for _ in range(8)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LoginDenied}
    assert node.tries == 1
    node.accepts = True
    assert (await transport.run(["echo", "x"])).stdout == "x\n"
    await transport.close()
