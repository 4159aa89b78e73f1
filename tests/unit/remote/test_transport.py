"""Commands and sessions on the login node, by the local transport; SSH itself is tested in tests/operators."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from tenacity import wait_none

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError, LoginNodeUnreachable
from llm_bridge.remote import connections, helpers, shared_transport, transport
from llm_bridge.remote.helper_calls import HelperCalls
from llm_bridge.remote.shared_transport import connect
from llm_bridge.remote.ssh_transport import SshTransport
from llm_bridge.remote.transport import (
    CommandFailed,
    Completed,
    LocalTransport,
    checked,
    find_programs,
)

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPGtlXlv0dnJav6OYYEmVA6bZGZGuyL88/BDmoV15gvJ"
LOCAL = Cluster(name="here", ssh_conn_id=None, workspace="/w", gpus_per_node=1)
# Answers each line with itself in upper case, and ends after "end".
ECHO = """
import sys
for line in sys.stdin.buffer:
    if line == b"end\\n":
        break
    answer = line.strip().upper()
    sys.stdout.buffer.write(b"%08d" % len(answer) + answer)
    sys.stdout.buffer.flush()
"""


async def test_a_command_gets_its_arguments_unchanged_and_its_standard_input() -> None:
    done = await LocalTransport().run(
        ["sh", "-c", 'printf "%s|" "$@"; cat; exit 3', "x", "a b", "$(id)"], stdin=b"in"
    )
    assert done == Completed(3, "a b|$(id)|in", "")


async def test_a_command_that_does_not_exist_fails_like_in_a_shell() -> None:
    done = await LocalTransport().run(["/nonexistent/program"])
    assert done.code == 127 and "/nonexistent/program" in done.stderr


async def test_a_command_that_does_not_end_is_killed_and_says_nothing_about_the_cluster() -> None:
    started = time.monotonic()
    with pytest.raises(LoginNodeUnreachable, match="`sleep` gave no answer within 5 s"):
        await LocalTransport().run(["sleep", "600"], timeout=5)
    assert time.monotonic() - started < 300


async def test_a_failed_command_is_an_error_with_its_output() -> None:
    assert await checked(LocalTransport(), ["echo", "hello"]) == "hello\n"
    with pytest.raises(CommandFailed, match=r"`sh` on the login node ended with exit code 4: bad$") as error:
        await checked(LocalTransport(), ["sh", "-c", "echo bad >&2; exit 4"])
    assert error.value.done.code == 4


async def test_programs_are_found_on_a_login_node_without_which(tmp_path: Path) -> None:
    """Minimal images of RHEL 9 and Debian have no `which`: the one here fails as a missing one does."""
    for name, text in {"which": "exit 127", "sinfo": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    found = await find_programs(
        LocalTransport(str(tmp_path)), ["sinfo", "no-such-program", "-v", "$(id)", "sh"]
    )
    assert found.pop("sh").startswith("/")
    assert found == {"sinfo": f"{tmp_path}/sinfo"}


def test_an_error_without_output_says_so() -> None:
    assert str(CommandFailed(["x"], Completed(1, "", ""))).endswith("(no output)")


async def test_a_wrong_connection_is_reported_with_everything_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = {"host_key": "SHA256:abc", "key_file": "/none/id"}
    monkeypatch.setenv(
        "AIRFLOW_CONN_SLURM_X",
        json.dumps({"conn_type": "ssh", "host": "127.0.0.1", "port": 1, "extra": extra}),
    )
    with pytest.raises(ConfigError, match=r"'slurm_x'.*no login.*/none/id.*'host_key'"):
        await SshTransport("slurm_x").run(["true"])


async def test_a_key_that_is_none_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"private_key": "no key", "host_key": ED25519}
    values = {"conn_type": "ssh", "host": "127.0.0.1", "login": "ada", "port": 1, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SLURM_X", json.dumps(values))
    with pytest.raises(ConfigError, match="'private_key' of connection 'slurm_x' is unusable"):
        await SshTransport("slurm_x").run(["true"])


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"host_key": ED25519},
        {"known_hosts": "FOLDER/known_hosts", "key_file": "FOLDER/id"},
        {"private_key": "KEY", "host_key": ED25519},
        {"private_key": "LOCKED", "private_key_passphrase": "secret", "host_key": ED25519},
        {"key_file": "FOLDER/id", "passphrase": "secret", "host_key": ED25519},
    ],
)
async def test_a_session_process_logs_in_with_the_arguments_of_the_providers_hook(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extra: dict[str, str]
) -> None:
    """asyncssh.connect is replaced: the arguments are the subject. Real logins of both are in tests/operators."""
    monkeypatch.setenv("HOME", str(tmp_path))
    key = asyncssh.generate_private_key("ssh-ed25519")
    texts = {
        "KEY": key.export_private_key().decode(),
        "LOCKED": key.export_private_key(passphrase="secret").decode(),
    }
    (tmp_path / "known_hosts").touch()
    found = {name: texts.get(value, value).replace("FOLDER", str(tmp_path)) for name, value in extra.items()}
    values = {"conn_type": "ssh", "host": "login.example", "login": "ada", "password": "p", "extra": found}
    monkeypatch.setenv("AIRFLOW_CONN_SLURM_X", json.dumps(values))
    asked: list[dict[str, Any]] = []

    async def connect(**arguments: Any) -> None:
        keys = arguments.get("client_keys")
        if isinstance(keys, list):
            arguments["client_keys"] = [one.export_public_key() for one in keys]
        asked.append(arguments)

    monkeypatch.setattr(asyncssh, "connect", connect)
    settings = await connections.login_settings("slurm_x")
    await SshTransport("slurm_x")._log_in(settings)
    await SshTransport("slurm_x", settings=settings)._log_in(settings)
    by_hook, by_session = asked
    assert by_session == by_hook and by_hook["host"] == "login.example"


async def test_a_connection_that_sshd_closes_before_its_greeting_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As sshd's MaxStartups does; this server does it to every connection."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(SshTransport._log_in.retry, "wait", wait_none())  # type: ignore[attr-defined]
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    values = {"conn_type": "ssh", "host": "127.0.0.1", "login": "ada"}
    values |= {"port": server.sockets[0].getsockname()[1], "extra": {"private_key": key, "host_key": ED25519}}
    monkeypatch.setenv("AIRFLOW_CONN_SLURM_X", json.dumps(values))
    async with server:
        with pytest.raises(LoginNodeUnreachable, match="cannot open SSH connection"):
            await SshTransport("slurm_x").run(["true"])
    assert connections == 5


async def test_a_session_answers_line_by_line() -> None:
    async with LocalTransport().session([sys.executable, "-c", ECHO]) as session:
        assert await session.ask(b"one") == b"ONE"
        session.send(b"two")
        assert await session.ask(b"three") == b"TWO", "answers come in the order of the lines"


async def test_a_session_whose_program_has_ended_or_hangs_is_unreachable() -> None:
    async with LocalTransport().session([sys.executable, "-c", ECHO]) as session:
        with pytest.raises(LoginNodeUnreachable, match="has ended"):
            await session.ask(b"end")
    async with LocalTransport().session(["sleep", "60"]) as session:
        with pytest.raises(LoginNodeUnreachable, match="no answer within 0 s"):
            await session.ask(b"one", timeout=0.1)


async def test_text_that_a_forced_command_prints_after_the_end_of_a_program_is_no_answer() -> None:
    wrapped = ["sh", "-c", '"$@"; echo session recorded', "sh", sys.executable, "-c", ECHO]
    async with LocalTransport().session(wrapped) as session:
        assert await session.ask(b"one") == b"ONE"
        with pytest.raises(LoginNodeUnreachable, match="has ended"):
            await session.ask(b"end")


async def test_a_machine_that_starts_no_process_now_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    async with connect(LOCAL) as login:
        with pytest.raises(LoginNodeUnreachable, match="cannot be started on this machine"):
            await login.calls.call("slurm_command", {}, 600)
        with pytest.raises(LoginNodeUnreachable, match="cannot be started on this machine"):
            await login.transport.run(["true"])


async def test_a_connection_is_closed_although_its_last_user_is_cancelled_while_the_helpers_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[Any] = []
    ending = asyncio.Event()

    async def end(self: HelperCalls) -> None:
        ending.set()
        await asyncio.Event().wait()

    async def close(self: LocalTransport) -> None:
        closed.append(self)

    async def use() -> None:
        async with connect(LOCAL):
            pass

    monkeypatch.setattr(HelperCalls, "close", end)
    monkeypatch.setattr(LocalTransport, "close", close)
    user = asyncio.create_task(use())
    await ending.wait()
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    assert len(closed) == 1


async def test_all_users_of_a_cluster_share_one_connection_until_the_last_one_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[Any] = []

    async def close(self: LocalTransport) -> None:
        closed.append(self)

    monkeypatch.setattr(LocalTransport, "close", close)
    async with connect(LOCAL) as first:
        async with connect(LOCAL) as second:
            assert first is second
        assert not closed
    assert closed == [first.transport] and not shared_transport._open
    async with connect(LOCAL) as later:
        assert later is not first


async def test_the_program_of_a_session_ends_with_its_block() -> None:
    program = (
        "import os; print('%08d%08d' % (8, os.getpid()), end='', flush=True); import time; time.sleep(60)"
    )
    async with LocalTransport().session([sys.executable, "-c", program]) as session:
        pid = int(await session.ask(b""))
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# Variables that sites and users set in start files, and one a user may see in a job's shell.
FOREIGN = {
    "SBATCH_EXPORT": "NONE",
    "SBATCH_TIMELIMIT": "5",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_JOB_ID": "17",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_CLUSTERS": "other",
    "SQUEUE_PARTITION": "high",
    "SQUEUE_FORMAT2": "jobid",
    "SACCT_FORMAT": "user",
    "SCANCEL_STATE": "PENDING",
    "SINFO_PARTITION": "low",
    "SALLOC_QOS": "x",
    "SRUN_EXPORT_ENV": "NONE",
    "SCONTROL_ALL": "1",
    "AIRFLOW__CORE__FERNET_KEY": "secret",
    "AIRFLOW_CONN_HUB": "http://:secret@hub",
    "_AIRFLOW_PROCESS_CONTEXT": "client",
}
KEPT = {
    "SLURM_CONF": "/etc/site/slurm.conf",
    "SLURM_CONF_SERVER": "ctl:6817",
    "SLURM_JWT": "t",
    "SLURMISH": "1",
    "MY_AIRFLOW_X": "1",
    "TWO_LINES": "a\nSBATCH_X=1",
}


def test_variables_that_steer_slurms_commands_reach_no_command_but_the_way_to_the_controller_does() -> None:
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    wrap = transport.CleanCommand("'c'", "", "mark")
    env = {"PATH": os.environ["PATH"], **FOREIGN, **KEPT}
    done = subprocess.run(
        wrap.argv([sys.executable, "-c", program]), env=env, stdout=subprocess.PIPE, text=True
    )
    seen = json.loads(done.stdout.partition("\nmark\n")[2])
    assert not set(FOREIGN) & set(seen)
    assert seen.items() >= KEPT.items()


def user(monkeypatch: pytest.MonkeyPatch, home: Path, shell: str) -> None:
    entry = pwd.struct_passwd(("me", "x", os.getuid(), 0, "", str(home), shell))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh", "/usr/sbin/nologin", "", "/no/such/shell"])
async def test_an_airflow_on_the_login_node_runs_commands_in_the_environment_of_a_login(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over SSH: a job gets the user's PATH, and not that of Airflow's virtual environment."""
    ambient = {"PATH": f"/airflow-env/bin:{os.environ['PATH']}", "VIRTUAL_ENV": "/airflow-env"}
    ambient |= {
        "PYTHONPATH": "/airflow",
        "LD_PRELOAD": "",
        "HF_TOKEN": "secret",
        "SLURM_CONF": "/etc/slurm.conf",
    }
    for name, value in (ambient | FOREIGN).items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".profile").write_text("echo hello\nexport PATH=$HOME/bin:$PATH SITE=1\n")
    user(monkeypatch, tmp_path, shell)
    monkeypatch.setattr(transport, "greetings", {})
    program = "import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))"
    directory, seen = json.loads(await checked(LocalTransport(), [sys.executable, "-c", program]))
    assert directory == str(tmp_path)
    assert not (set(ambient) - {"PATH", "SLURM_CONF"} | set(FOREIGN)) & set(seen)
    assert (seen["SITE"], seen["USER"], seen["SLURM_CONF"]) == ("1", "me", "/etc/slurm.conf")
    assert seen["PATH"].startswith(f"{tmp_path}/bin:/") and "airflow-env" not in seen["PATH"]


async def test_a_user_without_an_entry_in_passwd_gets_the_plain_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", missing)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert await checked(LocalTransport(), ["pwd"]) == f"{tmp_path}\n"


async def test_slurms_commands_are_searched_in_the_sites_directory_first(tmp_path: Path) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\necho the right one\n")
    (tmp_path / "squeue").chmod(0o755)
    site = LOCAL.model_copy(update={"slurm_bin": str(tmp_path)})
    async with connect(site) as here, connect(LOCAL) as elsewhere:
        assert here is not elsewhere
        assert await checked(here.transport, ["squeue"]) == "the right one\n"


GREETING = "Welcome to site01!\nquota: 93 %\n"


async def test_a_greeting_before_an_answer_is_skipped_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transport, "greetings", {})
    (tmp_path / ".profile").write_text("echo 'Welcome to site01!'; printf 'no line end'\n")
    user(monkeypatch, tmp_path, "/bin/sh")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            done = await LocalTransport().run(["sh", "-c", "cat; echo e >&2; exit 3"], stdin=b"{}\n")
            assert done == Completed(3, "{}\n", "e\n")
    assert caplog.text.count("Welcome to site01!") == 1


@pytest.mark.parametrize("start_file", ["exec sh", 'read line; eval "$line"', "exec cat"])
async def test_standard_input_reaches_only_the_command_itself(
    start_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell in its place would run what a user typed into the form."""
    (tmp_path / ".profile").write_text(f"{start_file}\n")
    user(monkeypatch, tmp_path, "/bin/sh")
    with pytest.raises(LoginNodeUnreachable, match=r"did not run `cat` within .* replace the shell \(exec\)"):
        await LocalTransport().run(["cat"], stdin=f"touch {tmp_path}/typed\n".encode(), timeout=2)
    assert not (tmp_path / "typed").exists()


async def test_a_command_that_does_not_read_its_input_and_one_that_writes_more_than_a_pipe_holds() -> None:
    much = b"x" * 3_000_000
    assert await LocalTransport().run(["echo", "ok"], stdin=much) == Completed(0, "ok\n", "")
    done = await LocalTransport().run(["sh", "-c", "tee /dev/stderr"], stdin=much)
    assert (len(done.stdout), len(done.stderr)) == (len(much), len(much))


async def test_a_greeting_before_a_session_is_skipped() -> None:
    wrap = transport.CleanCommand("'c'", "", "mark")
    reader = asyncio.StreamReader()
    reader.feed_data(f"{GREETING}mark\n00000002ok".encode())
    session = await transport.started(wrap, None, reader)
    assert await session._reader.readexactly(10) == b"00000002ok"


async def test_a_login_shell_that_runs_no_command_is_unreachable_with_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".profile").write_text("echo closed for; echo maintenance >&2; exit 1\n")
    user(monkeypatch, tmp_path, "/bin/sh")
    with pytest.raises(LoginNodeUnreachable, match="ran no command; it printed: closed for\nmaintenance"):
        await LocalTransport().run(["true"])
    wrap = transport.CleanCommand("'c'", "", "mark")
    reader = asyncio.StreamReader()
    reader.feed_data(b"closed for maintenance\n")
    reader.feed_eof()
    with pytest.raises(LoginNodeUnreachable, match="ran no command; it printed: closed for maintenance"):
        await transport.started(wrap, None, reader)


@pytest.mark.parametrize("argv", [["squeue", "--me"], helpers.argv("/usr/bin/python3")])
def test_a_command_line_has_nothing_that_csh_or_fish_read_differently_in_quotes(argv: list[str]) -> None:
    line = shlex.join(transport.CleanCommand("'c'", "/opt/slurm/bin", "mark").argv(argv))
    assert "\n" not in line and "!" not in line
    assert "\\\\" not in line and "\\'" not in line, "fish"


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_every_posix_shell_runs_the_command_line(shell: str) -> None:
    line = shlex.join(transport.CleanCommand("'c'", "", "mark").argv(["echo", "it's", "$HOME"]))
    done = subprocess.run([shell, "-c", line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\nmark\nit's $HOME\n", "")


async def test_a_process_that_cannot_be_killed_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process here is in state D: waiting for it is what is simulated."""

    async def forever(self: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(transport, "KILL_SECONDS", 0.1)
    async with LocalTransport().session([sys.executable, "-c", ECHO]) as session:
        assert await session.ask(b"one") == b"ONE"
        monkeypatch.setattr(asyncio.subprocess.Process, "wait", forever)
