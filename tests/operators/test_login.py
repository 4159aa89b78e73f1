"""The connection to the login node: its error messages, and an outage that has no meaning for any job."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError, LoginDenied, LoginNodeUnreachable
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.remote.shared_transport import connect
from llm_bridge.remote.transport import LocalTransport
from llm_bridge.slurm.events import SlurmJobEvent

NASTY = ["it's", "$(touch /tmp/pwned)", '"', "a\nb", "`id`", "グ", "*", "-n", ""]


@pytest.fixture
def cluster(site: dict[str, Any]) -> Cluster:
    return Cluster(name="test", **site)


def run(cluster: Cluster, *argv: str, stdin: bytes = b"", timeout: float = 20) -> Any:
    async def once() -> Any:
        async with connect(cluster) as login:
            return await login.transport.run(argv, stdin=stdin, timeout=timeout)

    return asyncio.run(once())


def test_arguments_arrive_as_they_were_given_and_no_shell_reads_them(cluster: Cluster, slurm: Any) -> None:
    done = run(cluster, "/usr/bin/python3", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *NASTY)
    assert json.loads(done.stdout) == NASTY
    assert slurm.run("login", ["test", "-e", "/tmp/pwned"]).returncode != 0


def test_exit_code_and_both_outputs_come_back(cluster: Cluster) -> None:
    done = run(cluster, "sh", "-c", "cat; echo err >&2; exit 7", stdin="グ".encode())
    assert (done.code, done.stdout, done.stderr) == (7, "グ", "err\n")


def test_a_session_that_is_killed_in_the_middle_does_not_count_as_success(cluster: Cluster) -> None:
    """The provider's own run_command returns exit code 0 here."""
    with pytest.raises(LoginNodeUnreachable, match=r"in the middle of|broke while running"):
        run(cluster, "sh", "-c", "kill -9 $PPID $$")


def test_a_command_without_an_answer_times_out(cluster: Cluster) -> None:
    with pytest.raises(LoginNodeUnreachable, match=r"no answer within 10 s"):
        run(cluster, "sleep", "600", timeout=10)


def test_thirty_commands_at_once_share_one_connection(cluster: Cluster) -> None:
    """Sshd's MaxSessions is 10."""

    async def many() -> Any:
        async with connect(cluster) as login:
            return await asyncio.gather(*(login.transport.run(["echo", str(i)]) for i in range(30)))

    assert [done.stdout.strip() for done in asyncio.run(many())] == [str(i) for i in range(30)]


def test_the_error_of_a_missing_connection_names_it(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"no connection 'nowhere': create it"):
        run(cluster.model_copy(update={"ssh_conn_id": "nowhere"}), "true")


def changed(monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any], **extra: str) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_SLURM_LOCAL", json.dumps({**connection, "extra": {**connection["extra"], **extra}})
    )


def test_the_error_of_an_unknown_host_key_says_what_to_do(
    cluster: Cluster, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "known_hosts").write_text("")
    changed(monkeypatch, connection, known_hosts=str(tmp_path / "known_hosts"))
    with pytest.raises(
        ConfigError, match=r"host key that is not trusted .* Compare the fingerprint .* your administrators"
    ):
        run(cluster, "true")


def test_the_error_of_a_key_that_the_login_node_refuses_says_so(
    cluster: Cluster, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import asyncssh

    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(tmp_path / "key"))
    changed(monkeypatch, connection, key_file=str(tmp_path / "key"))
    with pytest.raises(LoginDenied, match=r"refused the login .*/key \(extra 'key_file'\): check login"):
        run(cluster, "true")


def test_the_error_of_a_missing_key_file_names_it(
    cluster: Cluster, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, connection, key_file="/nowhere/id")
    with pytest.raises(ConfigError, match=r"'key_file' is /nowhere/id"):
        run(cluster, "true")


def test_an_unreachable_login_node_is_an_error_that_can_be_retried(cluster: Cluster, slurm: Any) -> None:
    slurm.stop("sshd")
    try:
        with pytest.raises(LoginNodeUnreachable):
            run(cluster, "true")
    finally:
        slurm.start("sshd")


def test_a_task_follows_its_job_again_after_an_outage_of_the_login_node(
    task: Any, slurm: Any, logged: Any
) -> None:
    trigger = task.start(
        SlurmSubmitOperator(task_id="t", cluster="test", script="#!/bin/bash\nsleep 12\necho done\n")
    )

    async def with_an_outage() -> Any:
        outcome = asyncio.create_task(trigger.outcome())
        await asyncio.sleep(2)
        # The listening sshd and the one that serves our session; the host has a process namespace of its own.
        await asyncio.to_thread(slurm.run, "login", ["pkill", "-KILL", "sshd"])
        await asyncio.sleep(3)
        await asyncio.to_thread(slurm.start, "sshd")
        return await outcome

    event = SlurmJobEvent.from_json(asyncio.run(with_an_outage()))
    assert event.info and event.info.state == "COMPLETED"
    lines = logged()
    assert any(line.startswith("cluster test unreachable; retrying in") for line in lines)
    assert any("answers again" in line for line in lines)
    assert lines.count("done") == 1


def test_a_connection_that_trusts_any_host_is_refused(
    cluster: Cluster, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, connection, no_host_key_check="true")
    with pytest.raises(ConfigError, match="host_key"):
        run(cluster, "true")


def test_a_jump_host_of_the_users_ssh_config_is_used(
    cluster: Cluster,
    slurm: Any,
    connection: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The name `login` resolves only inside the cluster, so a connection is possible only by the jump host."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(
        f"Host login\n  ProxyJump svc@127.0.0.1:{slurm.ssh_port}\n"
        f"Host 127.0.0.1\n  IdentityFile {slurm.ssh_key}\n  UserKnownHostsFile {slurm.known_hosts}\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    host_key = slurm.known_hosts.read_text().split(" ", 1)[1].strip()
    extra = {"key_file": str(slurm.ssh_key), "host_key": host_key}
    behind = {**connection, "host": "login", "port": 22, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SLURM_LOCAL", json.dumps(behind))
    assert run(cluster, "hostname").stdout.strip() == "login"


def test_an_airflow_on_the_login_node_needs_no_ssh() -> None:
    """The local transport runs on this machine; Slurm's commands are like any other program to it."""

    async def once() -> Any:
        done = await LocalTransport().run(
            ["sh", "-c", 'cat; printf "%s|" "$@"; exit 3', "sh", *NASTY], stdin=b"in:"
        )
        missing = await LocalTransport().run(["/no/such/program"])
        return done, missing

    done, missing = asyncio.run(once())
    assert (done.code, done.stdout) == (3, "in:" + "".join(f"{text}|" for text in NASTY))
    assert missing.code == 127 and "/no/such/program" in missing.stderr
