"""The first task of a run: every error before anything is submitted."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import TaskDeferred

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import (
    ConfigError,
    JobRefused,
    LoginDenied,
    LoginNodeUnreachable,
    NotAcceptedYet,
    SlurmUnavailable,
)
from llm_bridge.pipeline import check, first_contact, site_checks
from llm_bridge.pipeline.check import CheckOperator, check_site, planned_jobs
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.remote.messages import (
    ERROR,
    OK,
    CheckAnswer,
    CheckRequest,
    Finding,
    HubAccess,
    StartAnswer,
    StartRequest,
)
from llm_bridge.remote.transport import CommandFailed, Completed
from llm_bridge.slurm.capacity import TooLarge
from llm_bridge.slurm.site_names import WrongNames
from llm_bridge.slurm.spec import ResolvedJob
from testing.task_context import Store

REPO = "demo/tiny-llama-gsm8k"


class Client:
    """Stands for SlurmClient."""

    def __init__(self) -> None:
        self.cluster = load_cluster("local")
        self.answer = CheckAnswer([Finding("Hub token", OK, "the token belongs to ada")])
        self.request: CheckRequest | None = None
        self.start = StartAnswer()
        self.start_request: StartRequest | None = None
        self.tested: list[str | None] = []
        self.error: Exception | None = None
        self.refuses: str | None = None
        self.refusal: Exception = JobRefused("no such partition", "job", "local")
        self.wrong: list[WrongNames] = []
        self.large: list[TooLarge] = []
        self.too_long: list[Finding] = []
        # Output of each program that is a Python, and the path of python3.
        self.pythons = {"/usr/bin/python3": "llm-bridge 3.9\n"}
        self.python3 = "/usr/bin/python3\n"
        self.transport = self

    async def run(self, argv: list[str]) -> Completed:
        if argv[0] == "/bin/sh":
            assert argv[-1] == "python3"
            return Completed(0, self.python3, "")
        if argv[0] in self.pythons:
            return Completed(0, self.pythons[argv[0]], "")
        return Completed(127, "", f"sh: {argv[0]}: not found")

    async def wrong_names(self, jobs: list[ResolvedJob]) -> list[list[WrongNames]]:
        return [self.wrong for _ in jobs]

    async def too_large(self, jobs: list[ResolvedJob]) -> list[list[TooLarge]]:
        return [self.large for _ in jobs]

    async def beyond_partitions(self, jobs: list[ResolvedJob]) -> list[Finding]:
        return self.too_long if jobs else []

    async def call_helper(self, helper: str, request: Any, answer: Any) -> Any:
        if helper == "start_from":
            assert answer is StartAnswer
            self.start_request = request
            return self.start
        assert (helper, answer) == ("check_site", CheckAnswer)
        if self.error:
            raise self.error
        self.request = request
        return self.answer

    async def test_only(self, resolved: ResolvedJob) -> str:
        self.tested.append(resolved.job.stage)
        if self.refuses in (resolved.job.stage, "all"):
            raise self.refusal
        return "fits"


@pytest.fixture
def client(include: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()

    @asynccontextmanager
    async def open_client(cluster: str) -> AsyncIterator[Client]:
        client.cluster = load_cluster(cluster)
        yield client

    def with_another_python(cluster: Cluster, transport: Client) -> Client:
        client.cluster = cluster
        return client

    monkeypatch.setattr(check, "open_client", open_client)
    monkeypatch.setattr(site_checks, "SlurmClient", with_another_python)
    for name in set(client.cluster.model_dump(include={"wandb_conn_id"}).values()) | {
        client.cluster.hub.conn_id
    }:
        if name:
            connection = json.dumps({"conn_type": "generic", "password": "hf_secret"})
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", connection)
    return client


def wrong(*details: str) -> CheckAnswer:
    return CheckAnswer([Finding("site", ERROR, detail) for detail in details])


def edit(file: Path, **keys: Any) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))


def plan(**params: Any) -> Plan:
    return make_plan({"recipe": "tiny_cpu", "cluster": "local", **params}, "d", "r")


async def test_paths_token_and_every_job_are_checked(client: Client) -> None:
    await check_site(plan(base_model="/models/x"))
    assert client.request
    assert "/models/x" in client.request.readable
    assert client.request.workspace == client.cluster.workspace
    assert client.tested == ["prepare", "sft", "merge", "ppo", "merge", "evaluate", "upload"]


async def test_the_token_is_checked_only_for_a_run_that_uploads(client: Client, include: Path) -> None:
    file = include / "clusters" / "local.yaml"
    file.write_text(
        yaml.safe_dump(
            yaml.safe_load(file.read_text())
            | {
                "hub": {"conn_id": client.cluster.hub.conn_id or "hub"},
                "variables": {"HF_ENDPOINT": "http://hub"},
            }
        )
    )
    await check_site(plan())
    assert client.request and client.request.hub
    assert client.request.hub == HubAccess("http://hub", "hf_secret", REPO, source=client.request.hub.source)
    assert "hub.conn_id in include/clusters/local.yaml" in client.request.hub.source
    await check_site(plan(stages=["sft"]))
    assert client.request.hub is None


async def test_the_token_is_checked_for_the_repository_of_the_upload(client: Client) -> None:
    await check_site(plan(repo_id="me/mine"))
    assert client.request and client.request.hub and client.request.hub.repo_id == "me/mine"


async def test_a_token_file_is_checked_on_the_cluster(client: Client, include: Path) -> None:
    edit(include / "clusters" / "local.yaml", hub={"token_file": "/home/me/token"})
    await check_site(plan())
    assert client.request and client.request.hub and client.request.hub.token_file == "/home/me/token"
    assert client.request.hub.source == "/home/me/token (hub.token_file in include/clusters/local.yaml)"
    await check_site(plan(stages=["prepare"]))
    assert "hub.token_file" in client.request.readable["/home/me/token"]


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({}, "~/.cache/huggingface/token"),
        ({"HF_HOME": "/h"}, "/h/token"),
        ({"HF_HOME": "/h", "HF_TOKEN_PATH": "/t"}, "/t"),
    ],
)
async def test_an_upload_without_a_token_in_the_cluster_file_needs_that_of_the_jobs_user(
    client: Client, include: Path, variables: dict[str, str], path: str
) -> None:
    edit(include / "clusters" / "local.yaml", hub={}, variables=variables)
    await check_site(plan())
    assert client.request and client.request.hub and client.request.hub.token_file == path
    assert (
        "'upload' needs a Hub token: set hub.conn_id in include/clusters/local.yaml"
        in client.request.hub.source
    )


async def test_a_missing_connection_of_the_hub_is_not_needed_without_upload(
    client: Client, include: Path
) -> None:
    edit(include / "clusters" / "local.yaml", hub={"conn_id": "none"})
    with pytest.raises(ConfigError, match=r"type Generic, with the token as its password.*may delete `hub`"):
        await check_site(plan(stages=["prepare"]))
    edit(include / "clusters" / "local.yaml", hub={})
    await check_site(plan(stages=["prepare"]))


async def test_an_empty_environment_is_a_warning(
    client: Client, include: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await check_site(plan())
    assert "environment in" not in caplog.text
    edit(include / "clusters" / "local.yaml", environment={})
    await check_site(plan())
    assert "environment in include/clusters/local.yaml is empty" in caplog.text


async def test_slurms_directory_is_checked(client: Client, include: Path) -> None:
    edit(include / "clusters" / "local.yaml", slurm_bin="/opt/slurm/bin")
    await check_site(plan())
    assert client.request
    assert client.request.readable["/opt/slurm/bin"] == "slurm_bin in include/clusters/local.yaml"


@pytest.mark.parametrize(
    ("environment", "path", "key"),
    [
        ({"venv": "/e/verl"}, "/e/verl/bin/activate", "environment.venv"),
        ({"conda": "/e/verl", "conda_init": "/c/conda.sh"}, "/e/verl", "environment.conda"),
        ({"conda": "/e/verl", "conda_init": "/c/conda.sh"}, "/c/conda.sh", "environment.conda_init"),
        ({"modules": ["cuda"], "module_init": "/m/init"}, "/m/init", "environment.module_init"),
        ({"container": "/i/verl.sif"}, "/i/verl.sif", "environment.container"),
        ({"container": "/i", "container_mounts": ["/s:/d"]}, "/s", "environment.container_mounts"),
    ],
)
async def test_the_paths_of_the_environment_are_checked_with_their_keys(
    client: Client, include: Path, environment: dict[str, Any], path: str, key: str
) -> None:
    edit(include / "clusters" / "local.yaml", environment=environment)
    await check_site(plan())
    assert client.request and client.request.readable[path] == f"{key} in include/clusters/local.yaml"


async def test_what_a_run_starts_from_is_looked_up_and_becomes_part_of_its_plan(client: Client) -> None:
    made = plan(start_stage="merge", start_from="other")
    client.start = StartAnswer(results={"ppo": "id", "merge": "x"}, ppo_from="/models/start")
    found = await check_site(made)
    assert client.start_request and client.start_request.path == f"{made.workspace}/d/other"
    assert client.start_request.is_run and client.start_request.stage == "merge"
    assert found.start and found.start.results == {"ppo": "id"} and found.ppo_starts_from == "/models/start"
    assert "sft" not in found.evaluated, "that run has no SFT"
    client.start = StartAnswer(id="files")
    found = await check_site(plan(start_stage="ppo", start_from="/models/mine"))
    assert found.start and found.start.id == "files"


async def test_a_run_that_cannot_be_taken_over_is_reported_with_all_other_problems(client: Client) -> None:
    client.answer = wrong("no venv")
    client.start = StartAnswer(["start_from in the trigger form: no such run"])
    with pytest.raises(
        ConfigError, match=r"2 errors, nothing was submitted:\n  - no venv\n  - start_from in the"
    ):
        await check_site(plan(start_stage="ppo", start_from="other"))


async def test_sft_of_another_base_model_is_not_taken_over(client: Client) -> None:
    client.start = StartAnswer(results={"sft": "id"}, base_model="/models/other")
    with pytest.raises(
        ConfigError, match=r"SFT of run other was trained from /models/other, but this run's base_m"
    ):
        await check_site(plan(start_stage="ppo", start_from="other"))


async def test_a_model_on_the_hub_is_left_to_prepare(client: Client) -> None:
    await check_site(plan(start_stage="ppo", start_from="me/mine"))
    assert client.start_request is None


async def test_a_condition_of_publication_that_needs_a_model_which_the_other_run_lacks_is_refused(
    client: Client, include: Path
) -> None:
    edit(include / "recipes" / "tiny_cpu.yaml", publish={"better_than": "sft"})
    client.start = StartAnswer(results={"merge": "id"})
    with pytest.raises(ConfigError, match=r"publish\.better_than is 'sft', but this run does not have both"):
        await check_site(plan(start_stage="evaluate", start_from="other"))


async def test_an_image_in_a_registry_is_no_path(client: Client, include: Path) -> None:
    edit(include / "clusters" / "local.yaml", environment={"container": "docker://verl/verl"})
    await check_site(plan())
    assert client.request and client.request.readable == {}


async def test_all_problems_of_the_site_are_reported_at_once(
    client: Client, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(include / "clusters" / "local.yaml", hub={"conn_id": "none"}, wandb_conn_id="nobody")
    edit(include / "recipes" / "tiny_cpu.yaml", logger=["wandb"])
    client.answer = wrong("no space", "no venv")
    client.refuses = "all"
    with pytest.raises(ConfigError) as error:
        await check_site(plan())
    assert str(error.value).splitlines()[0] == "cluster 'local': 5 errors, nothing was submitted:"
    problems = [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]
    where = "include/clusters/local.yaml: Airflow has no connection"
    assert problems[0].startswith(f"wandb_conn_id in {where} 'nobody'")
    assert problems[1].startswith(f"hub.conn_id in {where} 'none'")
    assert problems[2:4] == ["no space", "no venv"]
    assert problems[4].startswith(
        "Slurm on cluster 'local' refuses the jobs prepare, sft, merge, ray_cluster, evaluate, upload: no such "
        "partition. Check "
    )
    assert len(problems) == 5


async def test_known_problems_are_reported_although_the_cluster_does_not_answer(client: Client) -> None:
    client.answer = wrong("no venv")
    client.refuses, client.refusal = "all", SlurmUnavailable("slurmctld")
    with pytest.raises(ConfigError, match=r"no venv\n.*could not be checked.*does not answer: slurmctld$"):
        await check_site(plan())
    client.answer = CheckAnswer()
    with pytest.raises(SlurmUnavailable):
        await check_site(plan())


async def test_known_problems_are_reported_although_a_helper_fails(client: Client) -> None:
    client.answer = wrong("no venv")
    client.refuses, client.refusal = "all", CommandFailed(["python3"], Completed(1, "", "a traceback"))
    with pytest.raises(ConfigError, match=r"(?s)no venv\n.*a traceback"):
        await check_site(plan())


async def test_an_unreachable_login_node_is_reported_with_what_is_wrong_in_airflow(
    client: Client, include: Path
) -> None:
    edit(include / "clusters" / "local.yaml", hub={"conn_id": "none"})
    client.error = LoginNodeUnreachable("Connection refused")
    with pytest.raises(
        ConfigError, match=r"(?s)connection 'none'.*does not answer: Connection refused\. Check host and port"
    ):
        await check_site(plan())


@pytest.mark.parametrize(
    ("printed", "cause"),
    [(None, "/opt/python: not found"), ("llm-bridge 2.7\n", "it is Python 2.7"), ("a file\n", "a file")],
)
async def test_a_wrong_login_python_is_named_with_a_right_one_and_hides_no_other_problem(
    client: Client, include: Path, printed: str | None, cause: str
) -> None:
    edit(include / "clusters" / "local.yaml", login_python="/opt/python")
    client.answer = wrong("no venv")
    client.pythons |= {"/opt/python": printed} if printed else {}
    with pytest.raises(ConfigError) as error:
        await check_site(plan())
    _, python, venv = str(error.value).splitlines()
    assert python.startswith(
        "  - login_python in include/clusters/local.yaml: /opt/python is no usable Python"
    )
    assert cause in python and python.endswith("such as /usr/bin/python3") and venv == "  - no venv"
    assert client.cluster.login_python == "/usr/bin/python3"


async def test_a_login_python_that_cannot_run_rays_guard_outside_the_container_is_reported(
    client: Client, include: Path
) -> None:
    edit(include / "clusters" / "local.yaml", environment={"container": "/images/verl.sif"})
    client.pythons["/usr/bin/python3"] = "llm-bridge 3.6\n"
    with pytest.raises(
        ConfigError, match=r"it is Python 3\.6\. Set it to a Python of version 3\.9 or newer on login"
    ):
        await check_site(plan())
    assert client.request and client.tested, "the rest is checked all the same"
    await check_site(plan(stages=["prepare"]))
    client.pythons["/usr/bin/python3"] = "llm-bridge 3.9\n"
    await check_site(plan())


async def test_a_login_node_without_python_is_reported(client: Client, include: Path) -> None:
    edit(include / "clusters" / "local.yaml", login_python="/opt/python")
    client.python3 = ""
    with pytest.raises(ConfigError, match=r"Set it to a Python of version 3\.6 or newer\. Nothing"):
        await check_site(plan())
    assert client.request is None


async def test_a_time_limit_beyond_the_partitions_refuses_a_run_that_slurm_would_accept(
    client: Client,
) -> None:
    client.too_long = [Finding("time_limit", ERROR, "time limit 2:00:00 of the jobs sft is too long")]
    with pytest.raises(ConfigError, match="time limit 2:00:00 of the jobs sft"):
        await check_site(plan())


async def test_wrong_names_of_all_keys_replace_slurms_refusal(client: Client) -> None:
    client.refuses = "all"
    client.wrong = [
        WrongNames("partition", "partition", ("gpu",), ("main", "low")),
        WrongNames("constraint", "feature", ("h100",), ()),
    ]
    with pytest.raises(ConfigError) as error:
        await check_site(plan())
    where = "in include/clusters/local.yaml: Slurm has no"
    assert str(error.value).splitlines()[1:] == [
        f"  - partition {where} partition 'gpu'. Choose from main, low, or delete the key",
        f"  - constraint {where} feature 'h100'. Delete the key",
    ]


async def test_a_size_that_no_node_has_is_reported_beside_wrong_names(client: Client) -> None:
    client.refuses = "sft"
    client.wrong = [WrongNames("partition", "partition", ("gpu",), ("main",))]
    client.large = [TooLarge("gpus_per_node", 8, "4 GPUs")]
    with pytest.raises(ConfigError) as error:
        await check_site(plan())
    assert str(error.value).splitlines()[2:] == [
        "  - gpus_per_node 8 of the jobs sft is too large: the largest node has 4 GPUs. Change it in "
        "include/clusters/local.yaml or the recipe"
    ]


async def test_a_job_that_slurm_refuses_fails_the_check(client: Client) -> None:
    client.refuses = "ppo"
    with pytest.raises(ConfigError, match="refuses the jobs ray_cluster: no such partition"):
        await check_site(plan())


async def test_a_job_that_slurm_does_not_accept_now_is_logged_and_the_run_goes_on(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.refuses, client.refusal = "sft", NotAcceptedYet("n3 (drain, bad fan)")
    await check_site(plan())
    assert client.tested[-1] == "upload"
    assert "sft: n3 (drain, bad fan). The run continues" in caplog.text


def test_only_jobs_of_the_selected_stages_are_planned() -> None:
    stages = [job.template for job in planned_jobs(plan(stages=["sft", "ppo"]))]
    assert stages == ["sft", "merge", "ray_cluster"]
    shared = planned_jobs(plan(stages=["sft", "ppo"], allocation="shared"))
    assert shared[0].template == "sft_then_ray"


def execute(event: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """Run the task; with an event, after a wait."""
    ti = SimpleNamespace(dag_id="d", run_id="r")
    context: Any = {"ti": ti, "params": {"recipe": "tiny_cpu", "cluster": "local", **params}}
    context["task_state_store"] = Store()
    operator = CheckOperator(task_id="check")
    found: dict[str, Any] = operator.execute_again(context, event) if event else operator.execute(context)
    return found


def test_the_task_returns_the_plan_as_json(client: Client) -> None:
    values = execute(run_name="n")
    assert Plan.model_validate(json.loads(json.dumps(values))) == plan(run_name="n")


def test_the_log_has_the_algorithm_and_what_the_form_changes(
    client: Client, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    execute(overrides="ppo.algorithm.adv_estimator=reinforce_plus_plus")
    text = capsys.readouterr().out + caplog.text
    assert "changed against the recipe: ppo.algorithm.adv_estimator: not in the recipe" in text
    assert "estimator reinforce_plus_plus, without a critic" in text
    assert "without a critic, verl does not use +critic.model.override_config" in text


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Airflow's variables."""
    values: dict[str, str] = {}

    def get(key: str, default: Any = None) -> Any:
        return values.get(key, default)

    def put(key: str, value: str, description: str | None = None) -> None:
        values[key] = value

    monkeypatch.setattr(first_contact.Variable, "get", get)
    monkeypatch.setattr(first_contact.Variable, "set", put)
    ssh = {"conn_type": "ssh", "host": "login.example.org", "login": "ada", "port": 2222}
    monkeypatch.setenv("AIRFLOW_CONN_SLURM_LOCAL", json.dumps(ssh))
    return values


def test_a_refused_login_in_the_first_task_is_a_wrong_setting(client: Client) -> None:
    client.error = LoginDenied("user or key")
    with pytest.raises(ConfigError, match="user or key"):
        execute()


def test_a_login_node_that_never_answered_is_reported_after_a_minute_with_its_connection(
    client: Client, answered: dict[str, str]
) -> None:
    client.error = LoginNodeUnreachable("Connection refused")
    with pytest.raises(TaskDeferred) as deferred:
        execute()
    deadline = deferred.value.trigger.serialize()[1]["deadline"]
    assert 50 < deadline - time.time() <= 60
    with pytest.raises(ConfigError) as error:
        execute(event={"service": "c", "answers": False})
    assert "never answered at ada@login.example.org:2222: Connection refused" in str(error.value)
    assert "Airflow connection 'slurm_local'" in str(error.value) and "ssh_conn_id" in str(error.value)


def test_a_login_node_that_has_answered_before_is_waited_for_without_limit(
    client: Client, answered: dict[str, str]
) -> None:
    execute()
    assert list(answered.values()) == ["ada@login.example.org:2222"]
    client.error = LoginNodeUnreachable("Connection refused")
    with pytest.raises(TaskDeferred) as deferred:
        execute()
    assert deferred.value.trigger.serialize()[1]["deadline"] is None
    answered[next(iter(answered))] = "ada@elsewhere:22"
    with pytest.raises(TaskDeferred) as deferred:
        execute()
    assert deferred.value.trigger.serialize()[1]["deadline"] is not None, "the connection was changed"


def test_slurm_that_does_not_answer_is_no_wrong_connection(client: Client, answered: dict[str, str]) -> None:
    client.error = SlurmUnavailable("slurmctld")
    for event in (None, {"service": "c", "answers": False}):
        answered.clear()
        with pytest.raises(TaskDeferred) as deferred:
            execute(event=event)
        assert deferred.value.trigger.serialize()[1]["deadline"] is None and answered


def test_without_airflows_variables_a_cluster_is_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("the API does not answer")

    monkeypatch.setattr(first_contact.Variable, "get", fails)
    client.error = LoginNodeUnreachable("x")
    with pytest.raises(TaskDeferred) as deferred:
        execute()
    assert deferred.value.trigger.serialize()[1]["deadline"] is None


async def test_the_paths_of_every_training_stages_data_are_checked(client: Client, include: Path) -> None:
    file = include / "recipes" / "tiny_cpu.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["ppo"]["data"] = {"source": "/data/sums/part-*.jsonl", "format": "chat"}
    file.write_text(yaml.safe_dump(recipe))
    await check_site(plan())
    assert client.request
    assert client.request.readable["/data/sums"].startswith(
        "ppo.data.source in include/recipes/tiny_cpu.yaml"
    )
