"""Findings of the doctor: broken files, the job's result, tokens, alerts, and the table. Slurm: tests/operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llm_bridge.commands import doctor as command
from llm_bridge.config.loader import load_cluster
from llm_bridge.notifications import channels
from llm_bridge.notifications.channels import Channel
from llm_bridge.pipeline import doctor, doctor_job, findings_table, pins, site_checks, tokens
from llm_bridge.pipeline.doctor import Examination
from llm_bridge.pipeline.plan import make_plan
from llm_bridge.remote.messages import ERROR, OK, SKIPPED, WARNING, Finding
from llm_bridge.slurm.client import SlurmClient

RESULT: dict[str, Any] = {
    "python": "3.11.2",
    "executable": "/env/bin/python",
    "versions": {"torch": "2.13.0+cpu", "verl": "0.9.1", "ray": "2.60.0", "transformers": "5.10.4"},
    "import_errors": {"torch": "", "verl": "", "ray": ""},
    "nodes": ["n1", "n2"],
    "reported": ["n1", "n2"],
    "problems": {},
    "warnings": {},
    "all_reduce": {"backend": "gloo", "rate": 0.5, "pairs": []},
}


def edit(file: Path, **keys: Any) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"partiton": "gpu"}, "partiton: no such key. Did you mean partition"),
        ({"gpus_per_node": 0}, "gpus_per_node: "),
        ({"time_limit": "soon"}, "time_limit: "),
        ({"environment": {"venv": "/a", "conda": "/b"}}, "environment: set one of venv, conda, container"),
        ({"gpu_request": "some"}, "gpu_request: Input should be 'gpus-per-node', 'gres' or 'none'"),
        ({"workspace": "here"}, "workspace: "),
    ],
)
async def test_each_wrong_key_of_a_cluster_file_is_a_row_and_all_else_is_skipped(
    include: Path, change: dict[str, Any], named: str
) -> None:
    edit(include / "clusters" / "local.yaml", **change)
    found = await doctor.examine("local")
    wrong, rest = found.findings
    assert wrong.result == ERROR and wrong.detail.startswith(f"include/clusters/local.yaml: {named}")
    assert "example.yaml" in wrong.action
    assert rest.result == SKIPPED and found.why_no_job == "the cluster file cannot be used"


async def test_a_missing_cluster_file_is_named_with_those_that_exist(include: Path) -> None:
    [wrong, _] = (await doctor.examine("nowhere")).findings
    assert wrong.result == ERROR and "'nowhere' is not one of the clusters" in wrong.detail
    assert wrong.action.startswith("choose from local")


async def test_a_missing_connection_skips_what_needs_the_login_and_says_so(include: Path) -> None:
    edit(include / "clusters" / "local.yaml", ssh_conn_id="nobody")
    found = await doctor.examine("local")
    rows = {finding.check: finding for finding in found.findings}
    assert rows["SSH connection"].result == ERROR and "'nobody'" in rows["SSH connection"].detail
    assert rows["SSH connection"].action.startswith("create it (Admin > Connections")
    for check in (
        "SSH host key",
        "login_python",
        "Slurm",
        "partition",
        "nodes",
        "workspace",
        "recipe tiny_cpu",
    ):
        assert rows[check].result == SKIPPED, check
        assert rows[check].detail.startswith("because the "), check
    assert found.nodes == 0 and found.why_no_job == "the login does not work"


async def test_a_wrong_recipe_is_a_row_with_its_key_and_stops_no_other(include: Path) -> None:
    edit(include / "clusters" / "local.yaml", ssh_conn_id="nobody")
    edit(include / "recipes" / "tiny_cpu.yaml", bas_model="x")
    rows = {finding.check: finding for finding in (await doctor.examine("local")).findings}
    assert (
        rows["recipe tiny_cpu"].result == ERROR and "bas_model: no such key" in rows["recipe tiny_cpu"].detail
    )
    assert rows["recipe tiny_grpo_cpu"].result == SKIPPED


async def test_a_recipe_for_several_clusters_is_checked_on_these_only(include: Path) -> None:
    edit(include / "clusters" / "local.yaml", ssh_conn_id="nobody")
    file = include / "recipes" / "tiny_cpu.yaml"
    values = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "cluster"}
    for clusters, because in (
        (["x", "y"], "because it names cluster x, y"),
        (["x", "local"], "because the "),
    ):
        file.write_text(yaml.safe_dump(values | {"clusters": clusters}))
        rows = {finding.check: finding for finding in (await doctor.examine("local")).findings}
        assert rows["recipe tiny_cpu"].result == SKIPPED
        assert rows["recipe tiny_cpu"].detail.startswith(because)


@pytest.mark.parametrize(
    ("named", "accepts_others", "result"),
    [
        ({"cluster": "local"}, True, ERROR),
        ({"clusters": ["local", "x"]}, True, ERROR),
        ({}, True, WARNING),
        ({}, False, ERROR),
    ],
)
async def test_a_recipe_that_is_too_large_is_an_error_only_of_a_cluster_that_it_names(
    include: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any], accepts_others: bool, result: str
) -> None:
    """Slurm's refusal is made up: the local cluster has the nodes that this recipe needs."""
    file = include / "recipes" / "tiny_cpu.yaml"
    values = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "cluster"}
    file.write_text(yaml.safe_dump(values | named))
    plan = make_plan({"recipe": "tiny_cpu", "cluster": "local"}, "d", "r")
    examiner = doctor._Examiner(load_cluster("local"), [plan], Examination())
    examiner.client = SlurmClient(load_cluster("local"), transport=None)  # type: ignore[arg-type]

    async def refuse(client: Any, jobs: Any, accepted: dict[Any, str]) -> list[Finding]:
        accepted |= {(("nodes", "1"),): "to start"} if accepts_others else {}
        return [Finding("jobs", ERROR, "Slurm refuses the jobs ppo: More nodes than there are")]

    monkeypatch.setattr(site_checks, "jobs", refuse)
    [found] = await examiner._recipe(plan)
    assert (found.check, found.result) == ("recipe tiny_cpu", result)


def test_an_errors_advice_is_what_to_do() -> None:
    text = "the login node refused the login (x) with key /k: check login and extra of that connection."
    assert doctor.advised("SSH login", text) == (
        *("SSH login", ERROR, "the login node refused the login (x) with key /k"),
        "check login and extra of that connection",
    )
    assert doctor.advised("SSH login", "it broke", "wait").action == "wait"


def of(findings: list[Finding], check: str) -> Finding:
    [found] = [finding for finding in findings if finding.check == check]
    return found


def test_the_result_of_the_job_shows_bandwidth_and_versions(include: Path) -> None:
    findings = doctor_job.succeeded("7", RESULT, load_cluster("local"))
    assert {finding.result for finding in findings} == {OK}
    assert of(findings, "job").detail == "Slurm job 7 ran on n1, n2"
    assert of(findings, "all-reduce").detail == "gloo over 2 node(s): 0.50 GiB/s"
    assert of(findings, "package torch").detail == "2.13.0+cpu, as in requirements-cluster.txt"


def test_a_package_that_is_missing_or_cannot_be_imported_names_the_file_to_install(include: Path) -> None:
    versions = RESULT["versions"] | {"torch": None, "ray": "2.0.0"}
    result = RESULT | {
        "versions": versions,
        "import_errors": {"verl": "No module named x"},
        "all_reduce": None,
    }
    findings = doctor_job.succeeded("7", result, load_cluster("local"))
    torch, verl, ray = (of(findings, f"package {name}") for name in ("torch", "verl", "ray"))
    assert (
        torch.result == ERROR
        and "include/clusters/local.yaml (Python 3.11.2, /env/bin/python)" in torch.detail
    )
    assert "python -m llm_bridge install-environment local --engine cpu" in torch.action
    assert verl.result == ERROR and "No module named x" in verl.detail
    assert ray.result == WARNING and "was tested with 2.60.0" in ray.detail and "ray==2.60.0" in ray.action
    assert of(findings, "all-reduce") == ("all-reduce", SKIPPED, "because torch is not installed", "")


def test_gpus_need_a_rollout_engine(include: Path) -> None:
    edit(include / "clusters" / "local.yaml", device="cuda")
    findings = doctor_job.succeeded("7", RESULT, load_cluster("local"))
    assert of(findings, "package vllm").result == WARNING
    assert pins.engine_of({"sglang": "0.5.13"}, "cuda") == "sglang"


def test_problems_of_nodes_are_errors_with_their_names(include: Path) -> None:
    result = RESULT | {
        "problems": {"n2": ["/tmp has 1 GiB left"]},
        "warnings": {"n1": ["its limit of open files is 1"]},
        "reported": ["n1"],
        "all_reduce": None,
    }
    findings = doctor_job.succeeded("7", result, load_cluster("local"))
    nodes = [finding for finding in findings if finding.check == "nodes of the job"]
    assert [(finding.result, finding.detail[:3]) for finding in nodes] == [(ERROR, "n2:"), (WARNING, "n1:")]
    shared = of(findings, "shared file system")
    assert shared.result == ERROR and "n2" in shared.detail and shared.action.startswith("set workspace in ")
    assert of(findings, "all-reduce").detail == "because a node of the job has a problem"


def test_a_job_that_failed_is_an_error_with_its_diagnosis() -> None:
    diagnosis = {
        "title": "Environment",
        "evidence": "environment.venv: /e cannot be read",
        "node": "n1",
        "advice": "fix it",
    }
    job, *others = doctor_job.failed(diagnosis)
    assert job == ("job", ERROR, "Environment: environment.venv: /e cannot be read (on n1)", "fix it")
    assert {finding.result for finding in others} == {SKIPPED}


@pytest.mark.parametrize(
    ("status", "body", "result"),
    [
        (200, {"data": {"viewer": {"username": "ada", "teams": {"edges": [{"node": {"name": "lab"}}]}}}}, OK),
        (200, {"data": {"viewer": None}}, ERROR),
        (401, {}, ERROR),
        (503, {}, WARNING),
        (200, {"data": {"viewer": {"username": "a", "teams": {"edges": [{"other": 1}]}}}}, WARNING),
        (200, ["another program"], WARNING),
    ],
)
def test_the_wandb_key_is_tried_and_never_shown(
    include: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: Any, result: str
) -> None:
    """W&B itself cannot be asked here: the answer is made up."""
    edit(include / "clusters" / "local.yaml", variables={}, wandb_conn_id="wandb")
    monkeypatch.setenv("AIRFLOW_CONN_WANDB", json.dumps({"conn_type": "generic", "password": "k3y"}))
    monkeypatch.setattr(tokens.httpx, "post", lambda *a, **k: httpx.Response(status, json=body))
    [found] = tokens.wandb(load_cluster("local"), {"r": None})
    assert found.result == result and "k3y" not in f"{found}"
    if result == ERROR:
        assert found.action.endswith("connection 'wandb' (wandb_conn_id in include/clusters/local.yaml)")


def test_wandb_is_not_asked_where_jobs_do_not_log_to_it(include: Path) -> None:
    assert tokens.wandb(load_cluster("local"), {"r": "lab"})[0].result == SKIPPED
    edit(include / "clusters" / "local.yaml", variables={})
    assert tokens.wandb(load_cluster("local"), {})[0].result == SKIPPED
    assert (
        "wandb_conn_id in include/clusters/local.yaml is not set"
        in tokens.wandb(load_cluster("local"), {"r": None})[0].detail
    )


def test_a_test_message_goes_to_each_channel_and_a_failure_names_connection_and_file(
    include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokens.alerts("doctor")[0].result == WARNING, "no channel"
    (include / "alerts.yaml").write_text("slack: {conn_id: a}\nhttp: {conn_id: b}\n")
    sent = []

    def fail(message: Any) -> None:
        raise channels.NotDelivered("no such host")

    both = [Channel("slack", "a", sent.append), Channel("http", "b", fail)]
    monkeypatch.setattr(channels, "channels", lambda alerts: both)
    good, bad = tokens.alerts("doctor")
    assert good.result == OK and sent[0].occasion == "test"
    assert bad.result == ERROR and "no such host" in bad.detail
    assert bad.action == "check the Airflow connection 'b' and 'http' in include/alerts.yaml"
    (include / "alerts.yaml").write_text("slak: {}\n")
    assert tokens.alerts("doctor")[0].result == ERROR


FINDINGS = [
    Finding("partition", OK, "main: UP"),
    Finding("login [red]", ERROR, "x " * 80, "set it"),
    Finding("job", SKIPPED, "because it is"),
]


def test_the_table_is_aligned_and_shows_texts_as_they_are() -> None:
    lines = findings_table.as_text(FINDINGS).splitlines()
    head = lines[0]
    assert [head.index(word) for word in ("check", "result", "found", "what to do")]
    assert all(len(line) <= findings_table.LOG_WIDTH for line in lines)
    [row] = [line for line in lines if line.startswith("login [red]")]
    assert row.index(ERROR) == head.index("result") and row.index("set it") == head.index("what to do")


def test_the_summary_names_the_errors() -> None:
    assert findings_table.summary(FINDINGS) == "1 ok, 1 error, 1 skipped; errors: login [red]"
    assert findings_table.summary(FINDINGS[:1]) == "1 ok"


@pytest.mark.parametrize(("result", "code"), [(OK, 0), (WARNING, 0), (ERROR, 1)])
def test_the_command_prints_json_and_its_exit_code_shows_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], result: str, code: int
) -> None:
    async def examine(name: str) -> Examination:
        return Examination([Finding("partition", result, "d")], nodes=2)

    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setattr(command, "quiet", lambda: None)
    from llm_bridge.__main__ import main

    assert main(["doctor", "local", "--no-job", "--json"]) == code
    values = json.loads(capsys.readouterr().out)
    assert values["cluster"] == "local" and values["errors"] == code
    assert values["findings"][0] == {"check": "partition", "result": result, "detail": "d", "action": ""}
    assert {row["detail"] for row in values["findings"] if row["check"] == "job"} == {"because of --no-job"}
