"""Calls of helpers by one process on the login node; here the login node is this machine."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import LoginNodeUnreachable, WorkspaceNotWritable
from llm_bridge.remote import helper_calls, helpers, transport
from llm_bridge.remote.helper_calls import HelperCalls
from llm_bridge.remote.messages import (
    SERVED_AT_ONCE,
    CommandAnswer,
    CommandRequest,
    HelperCall,
    decode,
    encode,
)
from llm_bridge.remote.transport import CommandFailed, LocalTransport, NotStarted, Session
from llm_bridge.slurm.client import SlurmClient, open_client

CLUSTER = Cluster(name="here", ssh_conn_id=None, workspace="/w", gpus_per_node=1, login_python=sys.executable)


class Counted(LocalTransport):
    """Counts what is started on the login node."""

    sessions = runs = 0

    @asynccontextmanager
    async def session(self, argv: Sequence[str]) -> AsyncIterator[Session]:
        self.sessions += 1
        async with super().session(argv) as session:
            yield session

    async def run(self, argv: Sequence[str], **options: Any) -> Any:
        self.runs += 1
        return await super().run(argv, **options)


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (helper_calls, transport):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_SECONDS", 600)


@pytest.fixture
def login() -> Counted:
    return Counted()


@pytest.fixture
async def calls(login: Counted) -> AsyncIterator[HelperCalls]:
    calls = HelperCalls(login, sys.executable)
    yield calls
    await calls.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def command(calls: HelperCalls, *argv: str, timeout: float = 600) -> CommandAnswer:
    """Run a command by the helper ``slurm_command``, without a rate limit."""
    request = encode(CommandRequest(argv, "", None))  # type: ignore[arg-type]
    answer: CommandAnswer = decode(CommandAnswer, await calls.call("slurm_command", request, timeout))
    return answer


async def test_a_hundred_calls_at_once_start_one_process(calls: HelperCalls, login: Counted) -> None:
    answers = await asyncio.gather(*(command(calls, "echo", str(n)) for n in range(100)))
    assert [answer.stdout.strip() for answer in answers] == [str(n) for n in range(100)]
    assert (login.sessions, login.runs) == (1, 0)


async def test_a_slow_call_does_not_hold_up_the_others(calls: HelperCalls, tmp_path: Path) -> None:
    """It ends only after the others have been answered."""
    done = tmp_path / "done"
    script = f"while [ ! -e {done} ]; do sleep 0.05; done"
    slow = [asyncio.create_task(command(calls, "sh", "-c", script)) for _ in range(SERVED_AT_ONCE - 1)]
    assert (await command(calls, "echo", "quick")).stdout == "quick\n"
    assert not any(task.done() for task in slow)
    done.touch()
    await asyncio.gather(*slow)


async def test_the_error_of_a_helper_is_that_calls_alone(calls: HelperCalls, login: Counted) -> None:
    with pytest.raises(CommandFailed, match=r"directory"):
        await calls.call("list_attempts", {"no": "such field"}, 600)
    assert (await command(calls, "echo", "x")).stdout == "x\n" and login.sessions == 1


async def test_a_process_that_dies_fails_its_calls_and_the_next_one_starts_another(
    calls: HelperCalls, login: Counted
) -> None:
    waiting = asyncio.create_task(command(calls, "sleep", "600"))
    await command(calls, "true")
    with pytest.raises(LoginNodeUnreachable, match="has ended"):
        await command(calls, "sh", "-c", "kill -9 $PPID")
    with pytest.raises(LoginNodeUnreachable, match="has ended"):
        await waiting
    assert (await command(calls, "echo", "x")).stdout == "x\n" and login.sessions == 2


async def test_a_call_without_an_answer_times_out_and_the_next_one_starts_another_process(
    calls: HelperCalls, login: Counted
) -> None:
    await command(calls, "true")
    with pytest.raises(LoginNodeUnreachable, match="no answer within 0 s"):
        await command(calls, "sleep", "60", timeout=0.2)
    assert (await command(calls, "echo", "x")).stdout == "x\n" and login.sessions == 2


async def test_a_call_without_an_answer_ends_no_other_call(
    calls: HelperCalls, login: Counted, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    script = f"touch {tmp_path}/began; until [ -e {done} ]; do sleep 0.05; done; echo innocent"
    innocent = asyncio.create_task(command(calls, "sh", "-c", script))
    await until((tmp_path / "began").exists)
    with pytest.raises(LoginNodeUnreachable, match="no answer"):
        await command(calls, "sleep", "60", timeout=0.2)
    assert (await command(calls, "echo", "x")).stdout == "x\n" and login.sessions == 2
    done.touch()
    assert (await innocent).stdout == "innocent\n"


async def test_the_time_of_a_call_begins_when_the_process_can_work_on_it(
    calls: HelperCalls, tmp_path: Path
) -> None:
    """Calls whose callers were cancelled are worked on until their end."""
    began, done = tmp_path / "began", tmp_path / "done"
    script = f"echo >> {began}; until [ -e {done} ]; do sleep 0.05; done"
    slow = [asyncio.create_task(command(calls, "sh", "-c", script)) for _ in range(SERVED_AT_ONCE)]
    await until(lambda: began.exists() and len(began.read_text()) == SERVED_AT_ONCE)
    for task in slow:
        task.cancel()
    quick = asyncio.create_task(command(calls, "echo", "x", timeout=3))
    await asyncio.sleep(4)
    done.touch()
    assert (await quick).stdout == "x\n"


async def test_a_call_that_hangs_keeps_no_slot_after_its_caller_was_cancelled(
    calls: HelperCalls, login: Counted, tmp_path: Path
) -> None:
    script = f"echo >> {tmp_path}/began; exec sleep 60"
    hanging = [
        asyncio.create_task(command(calls, "sh", "-c", script, timeout=5)) for _ in range(SERVED_AT_ONCE)
    ]
    began = tmp_path / "began"
    await until(lambda: began.exists() and len(began.read_text()) == SERVED_AT_ONCE)
    for task in hanging:
        task.cancel()
    assert (await command(calls, "echo", "x")).stdout == "x\n" and login.sessions == 2


async def test_the_error_of_a_module_that_the_login_node_cannot_load_is_shown(
    calls: HelperCalls, login: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    await command(calls, "true")
    with monkeypatch.context() as patch:
        broken = {"llm_bridge.remote.login.submit": "match 1:\n  case = 2\n"}
        patch.setattr(helpers, "modules", lambda name: broken)
        with pytest.raises(CommandFailed, match="SyntaxError"):
            await calls.call("submit", {}, 600)
    assert (await command(calls, "echo", "x")).stdout == "x\n" and login.sessions == 1


async def test_a_caller_that_is_cancelled_takes_no_other_calls_answer(calls: HelperCalls) -> None:
    first = asyncio.create_task(command(calls, "sh", "-c", "sleep 0.5; echo first"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await command(calls, "echo", "second")).stdout == "second\n"


async def test_a_python_that_does_not_start_is_reported_by_a_call_in_a_process_of_its_own(
    login: Counted, tmp_path: Path
) -> None:
    missing = HelperCalls(login, str(tmp_path / "python3"))
    with pytest.raises(NotStarted):
        await command(missing, "true")
    cluster = CLUSTER.model_copy(update={"login_python": str(tmp_path / "python3")})
    with pytest.raises(CommandFailed, match="ended with exit code 127"):
        await SlurmClient(cluster, login, missing).list_attempts("/w/d/r/t")


async def test_a_work_begun_is_completed_although_the_connection_breaks(
    calls: HelperCalls, tmp_path: Path
) -> None:
    began, done = tmp_path / "began", tmp_path / "done"
    process = await asyncio.create_subprocess_exec(
        *helpers.argv(sys.executable), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin
    script = f"touch {began}; sleep 1; touch {done}"
    request = encode(CommandRequest(["sh", "-c", script], "", None))  # type: ignore[arg-type]
    call = encode(HelperCall(1, "slurm_command", request, helpers.modules("slurm_command")))
    process.stdin.write(helpers.first_line("serve", {}) + json.dumps(call).encode() + b"\n")
    deadline = time.monotonic() + 600
    while not began.exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    process.stdin.close()
    await process.communicate()
    assert process.returncode == 0 and done.exists()


async def test_a_workspace_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(self: HelperCalls, *arguments: Any) -> Any:
        text = "Traceback ...\nOSError: [Errno 28] No space left on device: '/w/x'\n"
        raise CommandFailed(["submit"], helper_calls.Completed(1, "", text))

    monkeypatch.setattr(HelperCalls, "call", call)
    async with open_client(CLUSTER) as client:
        with pytest.raises(WorkspaceNotWritable, match="No space left"):
            await client.list_attempts("/w/d/r/t")
