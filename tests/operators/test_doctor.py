"""The doctor on a real cluster: a good file, and broken ones whose red rows name the key and the fix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.__main__ import main
from llm_bridge.commands import doctor as command
from llm_bridge.config.loader import load_cluster
from llm_bridge.pipeline import doctor, doctor_job, tokens
from llm_bridge.pipeline.doctor import Examination
from llm_bridge.remote.messages import ERROR, OK, SKIPPED, WARNING, Finding
from testing.hub import Hub
from testing.local_cluster import LocalCluster
from testing.sinks import mail_server, web_server
from testing.site import Site
from testing.wandb_server import WandbServer

# The only recipe here, for any cluster: each one costs calls of sbatch.
RECIPE = "doctors_recipe"


@pytest.fixture(scope="module", autouse=True)
def recipe(described: Site) -> Iterator[None]:
    folder = described.include / "recipes"
    values = yaml.safe_load((folder / "tiny_cpu.yaml").read_text())
    del values["cluster"]
    values["stages"] = ["prepare", "ppo"]
    (folder / f"{RECIPE}.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "available", lambda kind: [RECIPE])
        yield
    (folder / f"{RECIPE}.yaml").unlink()


def examine(name: str) -> tuple[Examination, dict[str, Finding]]:
    found = asyncio.run(doctor.examine(name))
    # The worst row of each check.
    rows = sorted(found.findings, key=lambda finding: finding.result == ERROR)
    return found, {finding.check: finding for finding in rows}


def test_a_good_file_has_no_error_and_its_job_shows_bandwidth_and_versions(
    slurm: LocalCluster, jobs: Callable[[str], list[str]]
) -> None:
    found, rows = examine("test")
    assert not [finding for finding in found.findings if finding.result == ERROR]
    for check in (
        "SSH host key",
        "greeting",
        "Slurm",
        "accounting",
        "partition",
        "account",
        "nodes",
        "file locks",
    ):
        assert rows[check].result == OK, check
    assert "Slurm accepts its jobs (prepare, ppo)" in rows[f"recipe {RECIPE}"].detail
    assert found.nodes == 2
    cluster = load_cluster("test")
    findings = asyncio.run(doctor_job.run(cluster, 2, "good", 1200))
    assert {finding.result for finding in findings} == {OK}, findings
    checks = {finding.check: finding.detail for finding in findings}
    assert "gloo over 2 node(s)" in checks["all-reduce"] and "GiB/s" in checks["all-reduce"]
    assert len(jobs(f"{doctor.DAG}-good")) <= 1


@pytest.fixture
def publishing(described: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """A recipe that publishes to ``lab/model`` and logs to the W&B entity ``lab``; its cluster files, with changes."""
    file = described.include / "recipes" / "publishing.yaml"
    values = yaml.safe_load((described.include / "recipes" / "tiny_cpu.yaml").read_text())
    values |= {"cluster": None, "stages": ["prepare", "sft", "upload"], "logger": ["console", "wandb"]}
    values |= {"hub": {"repo_id": "lab/model"}, "wandb": {"entity": "lab"}}
    del values["publish"]  # the run does not evaluate
    file.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(doctor, "available", lambda kind: ["publishing"])
    yield described.variant
    file.unlink()


def test_tokens_and_their_rights_are_tried_on_the_services(
    slurm: LocalCluster, publishing: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test Hub, which the login node reaches; W&B's server is a stand-in, which this machine reaches."""
    users = {
        "hf_writes": {"user": "ada", "role": "write", "orgs": ["lab"]},
        "hf_reads": {"user": "ada", "role": "read", "orgs": ["lab"]},
        "hf_other": {"user": "bob", "role": "write", "orgs": ["other"]},
    }
    hub = Hub(slurm, tmp_path / "hub", users)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def rows_with(hub_token: str, wandb_key: str) -> dict[str, Finding]:
        for name, secret in {"hub": hub_token, "wandb": wandb_key}.items():
            connection = json.dumps({"conn_type": "generic", "password": secret})
            monkeypatch.setenv(f"AIRFLOW_CONN_RIGHTS_{name.upper()}", connection)
        found, rows = examine(cluster)
        rows |= {finding.check: finding for finding in found.later}
        assert not any(secret in str(found) for secret in (hub_token, wandb_key)), found
        return rows

    with WandbServer() as wandb:
        wandb.users = {"key_of_ada": ("ada", ["lab"]), "key_of_bob": ("bob", ["other"])}
        variables = {"WANDB_MODE": "online", "WANDB_BASE_URL": wandb.url, "HF_ENDPOINT": "http://hub:8090"}
        connections = {"hub": {"conn_id": "rights_hub"}, "wandb_conn_id": "rights_wandb"}
        cluster = publishing("rights", variables=variables, **connections)
        hub.start()
        try:
            good = rows_with("hf_writes", "key_of_ada")
            for check in ("Hub token", "Hub repository", "W&B key", "W&B entity"):
                assert good[check].result == OK, good[check]
            other = rows_with("hf_other", "key_of_bob")
            reads = rows_with("hf_reads", "key_that_has_expired")
            expired = rows_with("hf_expired", "key_of_ada")
        finally:
            slurm.stop_service("hub")
    assert other["Hub token"].result == other["W&B key"].result == OK
    assert other["Hub repository"].result == other["W&B entity"].result == ERROR
    assert "bob cannot write to lab/model: it is no member of it" in other["Hub repository"].detail
    assert "one of these owners: bob, other" in other["Hub repository"].action
    assert "user bob is no member of 'lab'" in other["W&B entity"].detail
    assert other["W&B entity"].action.startswith("choose from bob, other, have bob invited to lab")
    assert "token of ada is read-only" in reads["Hub repository"].detail
    assert "connection 'rights_hub'" in reads["Hub repository"].action
    assert reads["W&B key"].result == expired["Hub token"].result == ERROR
    assert "refuses the key" in reads["W&B key"].detail
    assert "connection 'rights_wandb'" in reads["W&B key"].action
    assert "refuses the token (HTTP 401)" in expired["Hub token"].detail
    assert "connection 'rights_hub'" in expired["Hub token"].action and "W&B entity" not in reads


def test_the_command_delivers_a_test_alert_on_each_channel_and_names_those_that_fail(
    described: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mail server and a web server on this machine receive the messages of Airflow's own notifiers."""
    monkeypatch.setattr(command, "quiet", lambda: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = described.include / "alerts.yaml"
    before = file.read_text()
    email = {"conn_id": "rights_mail", "sender": "a@example.org", "to": ["b@example.org"]}
    try:
        with mail_server() as mails, web_server() as posts:
            monkeypatch.setenv("AIRFLOW_CONN_RIGHTS_MAIL", mails.connection)
            monkeypatch.setenv("AIRFLOW_CONN_RIGHTS_HOOK", f"http://127.0.0.1:{posts.port}")
            alerts = {"email": email, "http": {"conn_id": "rights_hook", "endpoint": "/hooks"}}
            file.write_text(yaml.safe_dump(alerts))
            assert main(["doctor", "test", "--no-job", "--send-alerts"]) == 0, capsys.readouterr().out
            [mail], [(path, post)] = mails, posts
            assert "doctor: a test of this alert channel" in mail["Subject"] and mail["To"] == "b@example.org"
            assert (path, post["occasion"]) == ("/hooks", "test")
        # Both servers are down now.
        file.write_text(yaml.safe_dump(alerts | {"slack": {"conn_id": "rights_nobody"}}))
        rows = {row.check: row for row in tokens.alerts("doctor")}
    finally:
        file.write_text(before)
    for channel, conn_id, cause in (
        ("email", "rights_mail", "Connection refused"),
        ("http", "rights_hook", "Connection refused"),
        ("slack", "rights_nobody", "Airflow has no connection 'rights_nobody'"),
    ):
        row = rows[f"alerts by {channel}"]
        assert row.result == ERROR and cause in row.detail, row
        assert f"the Airflow connection '{conn_id}' and '{channel}' in include/alerts.yaml" in row.action


def test_an_interrupted_doctor_cancels_its_job(slurm: LocalCluster) -> None:
    async def interrupt() -> None:
        work = asyncio.ensure_future(doctor_job.run(load_cluster("test"), 1, "interrupted", 1200))
        started = Path(doctor.directory("test", "interrupted")) / "attempt-1" / "job_id"
        while not started.exists():
            await asyncio.sleep(0.2)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        state = slurm.run("ctl", ["squeue", "-h", "-t", "all", "-o", "%T", "-j", started.read_text().strip()])
        assert state.stdout.strip() in ("CANCELLED", "COMPLETING", "")

    asyncio.run(interrupt())


@pytest.mark.parametrize(
    ("changes", "check", "detail", "action"),
    [
        ({"partition": "gpuu"}, "partition", "partition in include/clusters/", "choose from high, low"),
        ({"constraint": "h100"}, "feature", "Slurm has no feature 'h100'", "delete the key"),
        ({"gpus_per_node": 16}, "nodes", "gpus_per_node 16", "lower gpus_per_node"),
        (
            {"login_python": "/opt/python"},
            "login_python",
            "/opt/python is no usable Python",
            "/usr/bin/python3",
        ),
        ({"slurm_bin": "/opt/slurm/bin"}, "slurm_bin", "/opt/slurm/bin cannot be read", "correct the path"),
        ({"workspace": "/proc/work"}, "workspace", "workspace in include/clusters/", "set it to a directory"),
        (
            {"environment": {"venv": "/none"}},
            "environment.venv",
            "/none/bin/activate cannot be read",
            "correct the path",
        ),
    ],
)
def test_a_wrong_value_is_a_red_row_with_its_key_and_the_fix(
    described: Site, changes: dict[str, Any], check: str, detail: str, action: str
) -> None:
    [key] = changes
    name = described.variant(f"wrong_{key}", **changes)
    found, rows = examine(name)
    assert rows[check].result == ERROR, found.findings
    assert detail in rows[check].detail and action in rows[check].action
    assert "include/clusters/" in rows[check].detail + rows[check].action
    if check in ("partition", "feature"):
        assert rows["nodes"].result == rows[f"recipe {RECIPE}"].result == SKIPPED
        assert found.why_no_job


def test_an_account_that_slurm_does_not_enforce_is_a_warning_with_the_users_own(described: Site) -> None:
    _, rows = examine(described.variant("account", account="nobody", qos="fast"))
    assert rows["account"].result == rows["QOS"].result == WARNING
    assert (
        "no account 'nobody' for svc" in rows["account"].detail
        and "choose from acct" in rows["account"].action
    )


def test_a_changed_host_key_and_a_refused_login_are_distinguished(
    described: Site, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS"
    extra = {"key_file": connection["extra"]["key_file"], "host_key": key}
    monkeypatch.setenv("AIRFLOW_CONN_OTHER_KEY", json.dumps(connection | {"extra": extra}))
    monkeypatch.setenv("AIRFLOW_CONN_OTHER_USER", json.dumps(connection | {"login": "nobody"}))
    _, rows = examine(described.variant("key", ssh_conn_id="other_key"))
    assert rows["SSH host key"].result == ERROR and "ssh-keyscan" in rows["SSH host key"].action
    assert (rows["SSH connection"].result, rows["SSH login"].result) == (OK, SKIPPED)
    _, rows = examine(described.variant("user", ssh_conn_id="other_user"))
    assert rows["SSH login"].result == ERROR and "check login and extra" in rows["SSH login"].action
    assert rows["SSH host key"].result == OK
