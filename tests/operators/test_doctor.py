"""The doctor on a real cluster: a good file, and broken ones whose red rows name the key and the fix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.config.loader import load_cluster
from llm_bridge.pipeline import doctor, doctor_job
from llm_bridge.pipeline.doctor import Examination
from llm_bridge.remote.messages import ERROR, OK, SKIPPED, WARNING, Finding
from testing.local_cluster import LocalCluster
from testing.site import Site

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
