"""Tasks that share an SSH connection: real session processes and sockets; sshd is a server of asyncssh in this process.

Each HostSession here talks to the session process as the one of another task does; tests/operators has real tasks.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from llm_bridge.exceptions import ConfigError, LoginDenied, LoginNodeUnreachable, NoConnection
from llm_bridge.remote import host_folder, host_session, session_protocol
from llm_bridge.remote.helper_calls import HelperCalls
from llm_bridge.remote.host_session import HostSession
from llm_bridge.remote.messages import SERVED_AT_ONCE, CommandAnswer, CommandRequest, decode, encode
from llm_bridge.remote.session_protocol import LOG_NAME
from llm_bridge.remote.ssh_transport import SshTransport
from llm_bridge.remote.transport import CommandFailed, NotStarted
from testing.paths import ROOT
from tests.unit.remote.login_node import PASSWORD, LoginNode

# asyncssh's server, when a command's input ends before its output.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'Queue.join'")


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoginNode]:
    short = Path(tempfile.mkdtemp(prefix="lb"))  # a socket's path is short
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.setenv(host_session.IDLE_VARIABLE, "30")
    for name in ("START_SECONDS", "BEGIN_SECONDS"):  # a busy machine
        monkeypatch.setattr(host_session, name, 600.0)
    login_node = LoginNode(tmp_path, monkeypatch)
    await login_node.listen()
    yield login_node
    for pid in pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await ended(pid)
    await login_node.close()
    shutil.rmtree(short)


def folder() -> Path:
    return Path(tempfile.gettempdir()) / f"llm-bridge-{os.getuid()}"


def sockets() -> list[Path]:
    return list(folder().glob("session-*.sock"))


def pids() -> list[int]:
    """The session processes that were started in this test."""
    text = log_text()
    return [int(found) for found in re.findall(r"session process (\d+): started", text)]


def log_text() -> str:
    file = folder() / LOG_NAME
    return file.read_text() if file.exists() else ""


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def ended(pid: int) -> None:
    def is_gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    await until(is_gone)


def session(python: str = sys.executable) -> HostSession:
    """What a task makes."""

    def own() -> Any:
        transport = SshTransport("slurm_x")
        return transport, HelperCalls(transport, python)

    return HostSession("slurm_x", "", python, own)


async def command(task: HostSession, *argv: str) -> CommandAnswer:
    request = encode(CommandRequest(list(argv), "", None))  # type: ignore[arg-type]
    answer: CommandAnswer = decode(CommandAnswer, await task.call("slurm_command", request, 600))
    return answer


async def test_forty_tasks_at_once_make_one_login_and_one_process(node: LoginNode) -> None:
    answers = await asyncio.gather(*(command(session(), "echo", str(n)) for n in range(40)))
    assert [answer.stdout.strip() for answer in answers] == [str(n) for n in range(40)]
    assert (node.logins, len(pids())) == (1, 1)


async def test_a_command_gets_its_input_and_returns_its_outputs(node: LoginNode) -> None:
    task = session()
    data = bytes(range(1, 256)) * 5000  # more than a frame of the socket's buffers
    done = await task.run(["sh", "-c", "wc -c; echo err >&2; exit 7"], stdin=data)
    assert (done.code, done.stdout.strip(), done.stderr) == (7, str(len(data)), "err\n")
    big = await task.run(["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"])
    assert big.stdout == "x" * 300000
    assert node.logins == 1


async def test_errors_are_those_of_a_connection_of_its_own(node: LoginNode, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="directory"):
        await session().call("list_attempts", {"no": "such field"}, 600)
    with pytest.raises(NotStarted):
        await session(str(tmp_path / "python3")).call("slurm_command", {}, 600)
    with pytest.raises(LoginNodeUnreachable, match="`sleep` gave no answer within 1 s"):
        await session().run(["sleep", "600"], timeout=1)
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(tmp_path / "other"))
    node.connect(key_file=str(tmp_path / "other"))
    with pytest.raises(LoginDenied, match="refused the login"):
        await session().run(["true"])
    node.connect(key_file="/nowhere/id")
    with pytest.raises(ConfigError, match="'key_file' is /nowhere/id"):
        await session().run(["true"])


async def test_a_changed_connection_or_key_uses_another_process_and_a_removed_one_none(
    node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await session().run(["true"])
    node.connect(comment="changed")
    await session().run(["true"])
    os.utime(node.key)  # the key was replaced
    await session().run(["true"])
    assert (node.logins, len(set(pids()))) == (3, 3)
    monkeypatch.delenv("AIRFLOW_CONN_SLURM_X")
    with pytest.raises(NoConnection):
        await session().run(["true"])


async def test_a_process_that_is_killed_fails_what_it_had_begun_and_the_next_request_starts_another(
    node: LoginNode, tmp_path: Path
) -> None:
    waiting = [
        asyncio.create_task(command(session(), "sh", "-c", f"touch {tmp_path}/began; sleep 3; touch {tmp_path}/done")),
        asyncio.create_task(session().run(["sleep", "600"])),
    ]  # fmt: skip
    await until((tmp_path / "began").exists)
    await until(lambda: node.logins)
    os.kill(pids()[0], signal.SIGKILL)
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, LoginNodeUnreachable), outcome
    assert (await command(session(), "echo", "x")).stdout == "x\n"
    assert len(pids()) == 2
    await until((tmp_path / "done").exists)  # the helper's work went on, as with any connection that breaks


async def test_a_process_that_hangs_is_replaced(node: LoginNode, monkeypatch: pytest.MonkeyPatch) -> None:
    await session().run(["true"])
    (pid,) = pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(host_session, "BEGIN_SECONDS", 0.2)
        monkeypatch.setattr(host_session, "WITHDRAW_SECONDS", 0.2)
        with pytest.raises(LoginNodeUnreachable, match="gave no answer"):
            await session().run(["true"])
        monkeypatch.setattr(host_session, "BEGIN_SECONDS", 600.0)
        assert (await session().run(["echo", "x"])).stdout == "x\n"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(pids()) == 2
    await ended(pid)
    assert "ended: its socket was removed" in log_text()


async def test_a_request_that_waits_for_long_goes_by_a_connection_of_its_own(
    node: LoginNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f"echo >> {tmp_path}/began; until [ -e {tmp_path}/done ]; do sleep 0.1; done"
    slow = [asyncio.create_task(command(session(), "sh", "-c", script)) for _ in range(SERVED_AT_ONCE)]
    began = tmp_path / "began"
    await until(lambda: began.exists() and len(began.read_text()) == SERVED_AT_ONCE)
    monkeypatch.setattr(host_session, "BEGIN_SECONDS", 0.2)
    task = session()
    assert (await command(task, "echo", "x")).stdout == "x\n"
    assert node.logins == 2
    await task.close()
    (tmp_path / "done").touch()
    await asyncio.gather(*slow)


async def test_a_request_whose_process_ends_before_it_begins_is_sent_by_a_connection_of_its_own(
    node: LoginNode,
) -> None:
    """A process that accepts and ends, as one that is killed at that moment."""
    await session().run(["true"])
    (path,) = sockets()
    path.unlink()
    taken = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        taken += 1
        writer.close()

    async with await asyncio.start_unix_server(refuse, path):
        task = session()
        assert (await task.run(["echo", "x"])).stdout == "x\n"
        await task.close()
    assert (taken, node.logins) == (2, 2)


async def test_the_socket_of_a_process_that_was_killed_is_replaced(node: LoginNode) -> None:
    await session().run(["true"])
    (pid,) = pids()
    os.kill(pid, signal.SIGKILL)
    await ended(pid)
    assert len(sockets()) == 1
    await session().run(["true"])
    assert (len(pids()), len(sockets())) == (2, 1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("idle", "no request for 0.5 s"), ("life", "started 0.5 s ago"), ("socket", "was removed")],
)
async def test_a_process_ends_by_itself_and_leaves_nothing(
    node: LoginNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, reason: str
) -> None:
    if name == "idle":
        monkeypatch.setenv(host_session.IDLE_VARIABLE, "0.5")
    elif name == "life":
        monkeypatch.setattr(host_session, "LIFE_SECONDS", 0.5)
    script = f"touch {tmp_path}/began; sleep 1.5; echo done"
    work = asyncio.create_task(session().run(["sh", "-c", script]))
    await until((tmp_path / "began").exists)
    if name == "socket":
        sockets()[0].unlink()
    assert (await work).stdout == "done\n", "requests in work are completed first"
    await ended(pids()[0])
    assert reason in log_text()
    assert sockets() == []


async def test_a_task_that_ends_ends_its_command(node: LoginNode, tmp_path: Path) -> None:
    work = asyncio.create_task(session().run(["sh", "-c", f"touch {tmp_path}/began; sleep 600"]))
    await until((tmp_path / "began").exists)
    work.cancel()
    await until(lambda: node.cut_off)
    assert (await session().run(["echo", "y"])).stdout == "y\n"
    assert node.logins == 1


@pytest.mark.parametrize("where", ["folder", "path", "variable"])
async def test_where_no_process_can_run_each_task_has_a_connection_and_nothing_is_logged(
    node: LoginNode,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if where == "folder":
        host_folder.path().chmod(0o755)
    elif where == "path":
        deep = tmp_path / ("x" * 120)
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
    else:
        monkeypatch.setenv(host_session.IDLE_VARIABLE, "0")
        assert not host_session.is_possible()
        return
    for _ in range(2):
        task = session()
        assert (await task.run(["echo", "x"])).stdout == "x\n"
        assert (await command(task, "echo", "x")).stdout == "x\n"
        await task.close()
    assert node.logins == 2
    assert [record for record in caplog.records if record.name.startswith("llm_bridge.remote.host")] == []


async def test_a_process_that_does_not_start_is_reported_once(
    node: LoginNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_session.sys, "executable", "/bin/false")
    for _ in range(3):
        task = session()
        assert (await task.run(["echo", "x"])).stdout == "x\n"
        await task.close()
    assert len([one for one in caplog.records if "did not start" in one.getMessage()]) == 1


async def test_secrets_are_in_no_argument_environment_or_file(node: LoginNode) -> None:
    await session().run(["true"])
    (pid,) = pids()
    process = Path(f"/proc/{pid}")
    seen = (process / "cmdline").read_bytes()
    if os.getuid() == 0:
        seen += (process / "environ").read_bytes()
        assert re.search(r"Max core file size +0 +0", (process / "limits").read_text())
    assert b"session_process" in seen and PASSWORD.encode() not in seen
    for file in folder().iterdir():
        assert file.lstat().st_mode & 0o077 == 0, file
        assert file.is_socket() or PASSWORD.encode() not in file.read_bytes()
    # Nothing of the task's: neither its descriptors nor its session.
    assert os.getsid(pid) != os.getsid(0)
    kinds = {os.readlink(file) for file in (process / "fd").iterdir()}
    assert all(
        kind.startswith(("socket:", "anon_inode:", "/dev/null", str(folder()), "pipe:")) for kind in kinds
    )


def test_a_process_of_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert session_protocol.is_own(ours)
        monkeypatch.setattr(os, "getuid", lambda: 4242)
        assert not session_protocol.is_own(ours)


async def test_a_task_imports_no_ssh_library(node: LoginNode) -> None:
    program = """
import sys
from llm_bridge.config.cluster import Cluster
from llm_bridge.remote.shared_transport import connect, run_in_task
cluster = Cluster(name="x", ssh_conn_id="slurm_x", workspace="/w", gpus_per_node=1, login_python=sys.executable)
async def work():
    async with connect(cluster) as login:
        return (await login.transport.run(["echo", "x"])).stdout
assert run_in_task(work()) == "x\\n"
print(sorted({"asyncssh", "paramiko"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/plugins", "TMPDIR": tempfile.gettempdir()}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=subprocess.PIPE
    )
    out, _ = await child.communicate()
    assert (child.returncode, out.decode().splitlines()[-1]) == (0, "[]")
    assert node.logins == 1 and len(pids()) == 1
