"""Slurm commands and their answers, with a login node that gives prepared output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import (
    ConfigError,
    JobRefused,
    NotAcceptedYet,
    RateLimitExceeded,
    SlurmUnavailable,
    SubmissionUnread,
    WorkspaceNotWritable,
)
from llm_bridge.remote import attempt_dir, messages
from llm_bridge.remote.attempt_dir import Outcome
from llm_bridge.remote.messages import AttemptJob, CommandAnswer, SubmitAnswer, encode
from llm_bridge.remote.transport import CommandFailed, Completed
from llm_bridge.slurm import client as client_module
from llm_bridge.slurm.client import SlurmClient, StartEstimate
from llm_bridge.slurm.spec import ResolvedJob, Resources, SlurmJob
from llm_bridge.slurm.status import UNLISTED, Phase

TIMES = "2026-11-23T08:30:24|2026-11-23T08:30:26"
SITE: dict[str, Any] = {"name": "here", "ssh_conn_id": None, "workspace": "/w", "gpus_per_node": 8}


class LoginNode:
    """Stands for the transport: a prepared answer by the name of the command; helpers are named by their request."""

    def __init__(self) -> None:
        self.answers: dict[str, Completed] = {}
        self.calls: list[list[str]] = []
        self.requests: list[dict[str, Any]] = []

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        self.calls.append(list(argv))
        if argv[1:3] == ["-I", "-c"]:  # a helper
            call = json.loads(stdin)
            self.requests.append(call["request"])
            return self.answers[call["main"].rpartition(".")[2]]
        return self.answers.get(argv[0], Completed(0, "", ""))

    def called(self, command: str) -> list[list[str]]:
        return [call for call in self.calls if call[0] == command]


@pytest.fixture
def login() -> LoginNode:
    return LoginNode()


@pytest.fixture
def slurm(login: LoginNode) -> SlurmClient:
    return SlurmClient(Cluster(**SITE), login)  # type: ignore[arg-type]


def squeue(job_id: str, state: str, directory: str = "") -> str:
    return f"{job_id}|{state}|None|n1|0|{TIMES}|N/A|0|{directory}|0|\n"


def sacct(job_id: str, state: str) -> str:
    return f"{job_id}|{state}|None|n1|0:0|0:0|{TIMES}|2026-11-23T08:31:26|/w/a|60|01:00||cpu=2,node=1\n"


async def test_one_squeue_answers_for_all_jobs_and_sacct_for_those_that_it_does_not_list(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["squeue"] = Completed(
        0, "Welcome!\n" + squeue("7", "RUNNING") + squeue("99", "RUNNING"), ""
    )
    login.answers["sacct"] = Completed(0, sacct("8", "FAILED") + sacct("9", "RUNNING"), "")
    found = await slurm.find(["7", "8", "9", "no id"])
    assert {job_id: info.state for job_id, info in found.items()} == {"7": "RUNNING", "8": "FAILED"}
    [call] = login.called("squeue")
    assert call[-1] == "7,8,9"
    assert login.called("sacct")[0][-1] == "8,9"


async def test_a_job_that_only_accounting_lists_as_running_is_unlisted(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["sacct"] = Completed(0, sacct("9", "RUNNING"), "")
    info = (await slurm.find(["9"], unlisted=True))["9"]
    assert (info.state, info.reason, info.phase) == (UNLISTED, "RUNNING", Phase.UNKNOWN)


async def test_an_error_of_squeue_is_no_verdict_on_a_job_unless_it_is_about_its_only_id(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["squeue"] = Completed(1, "", "slurm_load_jobs error: Invalid job id specified")
    assert await slurm.find(["7"]) == {}
    login.answers["squeue"] = Completed(1, "", "Unable to contact slurm controller")
    with pytest.raises(SlurmUnavailable, match="here"):
        await slurm.find(["7"])


async def test_a_job_that_slurmctld_has_forgotten_costs_no_other_job_its_answer(
    slurm: SlurmClient, login: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(argv: Sequence[str], **_: Any) -> Completed:
        if argv[0] == "sacct":
            return Completed(0, "", "")
        if "-j" in argv:
            return Completed(1, "", "slurm_load_jobs error: Invalid job id specified")
        assert "--me" in argv
        return Completed(0, squeue("8", "RUNNING") + squeue("99", "RUNNING"), "")

    monkeypatch.setattr(login, "run", run)
    found = await slurm.find(["7", "8"])
    assert {job_id: info.state for job_id, info in found.items()} == {"8": "RUNNING"}


async def test_without_ids_no_command_runs(slurm: SlurmClient, login: LoginNode) -> None:
    assert await slurm.find(["no id", ""]) == {}
    await slurm.cancel(["1,2"])
    assert not await slurm.release("x") and not login.calls


async def test_a_job_that_slurm_has_forgotten_is_judged_by_its_outcome_file(
    slurm: SlurmClient, login: LoginNode
) -> None:
    assert await slurm.look_up("7", "/w/a") is None
    login.answers["cat"] = Completed(0, json.dumps(Outcome(0, 2.0)._asdict()), "")
    info = await slurm.look_up("7", "/w/a")
    assert info and info.state == "COMPLETED"
    assert login.called("cat")[-1][-1] == f"/w/a/{attempt_dir.OUTCOME}"


async def test_a_job_that_slurm_still_ends_is_looked_up_as_completed_if_it_wrote_exit_code_0(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["squeue"] = Completed(0, squeue("7", "COMPLETING", "/w/a"), "")
    login.answers["cat"] = Completed(0, json.dumps({"exit_code": 1, "ended": 2.0}), "")
    info = await slurm.look_up("7", "/w/a")
    assert info and info.state == "COMPLETING", "Slurm may run it again"
    login.answers["cat"] = Completed(0, json.dumps({"exit_code": 0, "ended": 2.0}), "")
    info = await slurm.look_up("7", "/w/a")
    assert info and info.meaning.good and info.phase is Phase.ENDED


async def test_a_job_in_another_directory_is_not_the_one_that_is_looked_up(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["squeue"] = Completed(0, squeue("7", "RUNNING", "/w/other"), "")
    login.answers["cat"] = Completed(1, "", "No such file")
    assert await slurm.look_up("7", "/w/a") is None


JOB = SlurmJob(cluster="here", directory="/w/t", script="#!/bin/bash\ntrue\n").resolve(Cluster(**SITE))
OWNER = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1}


def answer(value: Any) -> Completed:
    return Completed(0, json.dumps(encode(value)), "")


async def submit(slurm: SlurmClient) -> SubmitAnswer:
    return await slurm.submit(JOB, "/w/t/attempt-1", "llmb-t-1", OWNER, {"hub": "hf_secret"})


async def test_lines_after_a_helpers_answer_are_no_part_of_it(slurm: SlurmClient, login: LoginNode) -> None:
    printed = answer(SubmitAnswer(messages.SUBMITTED, "7")).stdout
    login.answers["submit"] = Completed(0, f"{printed}\nThis session was recorded.\n", "")
    assert (await submit(slurm)).job_id == "7"


async def test_a_submission_sends_files_and_secrets_on_standard_input_only(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["submit"] = answer(SubmitAnswer(messages.SUBMITTED, "7"))
    assert (await submit(slurm)).job_id == "7"
    [request] = login.requests
    assert request["secrets"] == {"hub": "hf_secret"}
    assert {attempt_dir.SCRIPT, attempt_dir.SETTINGS, attempt_dir.USER_SCRIPT} == set(request["files"])
    assert "hf_secret" not in str(login.calls)


async def test_a_refused_job_is_a_config_error_and_its_secrets_are_removed(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["submit"] = answer(SubmitAnswer(messages.REFUSED, message="invalid partition"))
    with pytest.raises(ConfigError, match=r"(?s)invalid partition.*include/clusters/here\.yaml"):
        await submit(slurm)
    assert login.called("rm") == [["rm", "-rf", "--", f"/w/t/attempt-1/{attempt_dir.SECRETS}"]]


async def test_a_refusal_of_an_unavailable_slurmctld_is_no_config_error(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["submit"] = answer(SubmitAnswer(messages.REFUSED, message="sbatch: Socket timed out"))
    with pytest.raises(SlurmUnavailable):
        await submit(slurm)
    assert not login.called("rm"), "slurmctld may have accepted the job"


async def test_a_job_that_slurm_does_not_accept_now_is_no_config_error_and_leaves_no_secrets(
    slurm: SlurmClient, login: LoginNode
) -> None:
    message = "sbatch: error: QOSMaxSubmitJobPerUserLimit"
    login.answers["submit"] = answer(SubmitAnswer(messages.REFUSED, message=message))
    with pytest.raises(NotAcceptedYet, match=r"waiting for other jobs to end.*QOSMaxSubmitJobPerUserLimit"):
        await submit(slurm)
    assert login.called("rm")
    with pytest.raises(NotAcceptedYet):
        await slurm.test_only(JOB)


async def test_without_an_answer_of_squeue_a_job_is_not_refused(slurm: SlurmClient, login: LoginNode) -> None:
    login.answers["submit"] = answer(SubmitAnswer(messages.NO_ANSWER, message="squeue: error: whatever"))
    for call in (submit(slurm), slurm.test_only(JOB)):
        with pytest.raises(SlurmUnavailable, match="whatever"):
            await call


@pytest.mark.parametrize(("nodes", "error"), [(3, NotAcceptedYet), (4, ConfigError), (2, ConfigError)])
async def test_a_test_that_finds_too_few_nodes_fails_for_good_only_if_they_are_not_configured(
    slurm: SlurmClient, login: LoginNode, nodes: int, error: type[Exception]
) -> None:
    """With two nodes in service, a request for two was refused for another reason."""
    text = "allocation failure: Requested node configuration is not available"
    login.answers["submit"] = answer(SubmitAnswer(messages.REFUSED, message=text))
    rows = [f"main*|n{n}|{state}|8|8000|gpu:8|(null)|{why}\n" for n, state, why in SINFO]
    login.answers["sinfo"] = Completed(0, "".join(rows), "")
    resources = Resources(nodes=nodes, gpus_per_node=8)
    job = replace(JOB, job=JOB.job.model_copy(update={"resources": resources}))
    with pytest.raises(error, match=r"3 node\(s\) fit the job, which requests") as refused:
        await slurm.test_only(job)
    assert ("n3 (drain, bad fan)" in str(refused.value)) is (error is NotAcceptedYet)
    sizes = f"requests {nodes} with gpus-per-node 8; its nodes have 8 CPUs, 8000 MiB, gpu:8"
    assert (sizes in str(refused.value)) is (nodes > 3)


@pytest.mark.parametrize(
    ("starts", "best"),
    [
        ({"full,free": 2700.0, "full": 2700.0, "free": 0.0}, "free"),
        ({"full,free": 2700.0, "full": 2700.0, "free": None}, "full,free"),
        ({"full,free": None, "full": JobRefused("not there", "j", "c"), "free": 60.0}, "free"),
        ({"full,free": 2.0}, "full,free"),
    ],
)
async def test_the_start_of_a_job_in_several_partitions_is_that_in_the_one_that_can_start_it_first(
    slurm: SlurmClient, monkeypatch: pytest.MonkeyPatch, starts: dict[str, Any], best: str
) -> None:
    """For a list of partitions, sbatch --test-only answers for the first one that has enough nodes."""
    asked = []

    async def test(resolved: ResolvedJob, directory: str, key: str) -> StartEstimate:
        asked.append(dict(resolved.directives)["partition"] or "")
        if isinstance(starts[asked[-1]], Exception):
            raise starts[asked[-1]]
        return StartEstimate(f"in {asked[-1]}", starts[asked[-1]])

    monkeypatch.setattr(slurm, "_test", test)
    resources = JOB.job.resources.model_copy(update={"partition": "full,free"})
    job = replace(JOB, job=JOB.job.model_copy(update={"resources": resources}))
    assert await slurm.estimate_start(job) == (f"in {best}", starts[best])
    assert asked == list(starts)


async def test_wrong_names_are_found_for_each_job(slurm: SlurmClient, login: LoginNode) -> None:
    login.answers["sinfo"] = Completed(0, "main|n1|(null)\n", "")
    login.answers["scontrol"] = Completed(1, "", "")
    right = replace(JOB, job=JOB.job.model_copy(update={"resources": Resources(partition="main")}))
    wrong = replace(JOB, job=JOB.job.model_copy(update={"resources": Resources(partition="gpu")}))
    found = await slurm.wrong_names([right, wrong])
    assert [[names.names for names in each] for each in found] == [[], [("gpu",)]]


SINFO = [(1, "idle", "none"), (2, "alloc", "none"), (3, "drain", "bad fan")]


async def test_a_submission_without_a_known_id_quotes_what_sbatch_printed(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["submit"] = answer(SubmitAnswer(messages.UNREAD, message="sbatch printed 'Hello'"))
    with pytest.raises(SubmissionUnread, match=r"sbatch printed 'Hello'.*llmb-t-1"):
        await submit(slurm)


async def test_within_a_rate_limit_commands_run_through_the_helper(login: LoginNode) -> None:
    slurm = SlurmClient(Cluster(**SITE, rpc_budget={"burst": 5, "per_minute": 60}), login)  # type: ignore[arg-type]
    login.answers["slurm_command"] = answer(CommandAnswer(0, "Slurmctld(primary) at c is UP\n"))
    assert await slurm.ping()
    assert login.requests[0]["budget"] == {
        "path": "/w/.llm-bridge/rpc_budget.json", "burst": 5, "per_minute": 60
    }  # fmt: skip
    login.answers["slurm_command"] = answer(CommandAnswer(wait_seconds=12.5))
    with pytest.raises(RateLimitExceeded) as error:
        await slurm.find(["7"], reserve=3)
    assert error.value.seconds == 12.5 and login.requests[1]["reserve"] == 3


async def test_accounting_waits_until_it_has_recorded_the_end_of_an_ended_job(
    slurm: SlurmClient, login: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ACCOUNTING_PAUSE_SECONDS", 0.0)
    login.answers["sacct"] = Completed(0, sacct("7", "RUNNING"), "")
    found = await slurm.accounting("7", ended=True)
    assert found and found.state == "RUNNING"
    assert len(login.called("sacct")) == client_module.ACCOUNTING_TRIES
    await slurm.accounting("7", ended=False)
    assert len(login.called("sacct")) == client_module.ACCOUNTING_TRIES + 1
    login.answers["sacct"] = Completed(1, "", "Slurm accounting storage is disabled")
    assert await slurm.accounting("7", ended=True) is None


async def test_an_sacct_without_the_fields_of_the_usage_is_asked_without_them(
    slurm: SlurmClient, login: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(argv: Sequence[str], **_: Any) -> Completed:
        login.calls.append(list(argv))
        if "TRESUsageInAve" in argv[argv.index("-o") + 1]:
            return Completed(1, "", 'sacct: fatal: Invalid field requested: "TRESUsageInAve"')
        return Completed(0, sacct("7", "COMPLETED"), "")

    monkeypatch.setattr(login, "run", run)
    found = await slurm.accounting("7", ended=True, directory="/w/a")
    assert found and found.state == "COMPLETED" and len(login.calls) == 2
    (used,) = (await slurm.usage([AttemptJob("7", "/w/a"), AttemptJob("", "/w/b")])).values()
    assert used.efficiency() == {"cpu_percent": 50, "run_s": 60}


async def test_the_usage_of_all_jobs_is_one_query_and_waits_until_their_ends_are_recorded(
    slurm: SlurmClient, login: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ACCOUNTING_PAUSE_SECONDS", 0.0)
    jobs = [AttemptJob("7", "/w/a"), AttemptJob("8", "/w/b"), AttemptJob("9", "/w/other")]
    login.answers["sacct"] = Completed(
        0, sacct("7", "COMPLETED") + sacct("8", "RUNNING").replace("/w/a", "/w/b") + sacct("9", "FAILED"), ""
    )
    assert set(await slurm.usage(jobs)) == {"/w/a", "/w/b"}
    assert len(login.called("sacct")) == client_module.ACCOUNTING_TRIES
    assert login.called("sacct")[0][-1] == "7,8,9"
    login.answers["sacct"] = Completed(1, "", "Slurm accounting storage is disabled")
    assert await slurm.usage(jobs) == {} and await slurm.usage([]) == {}


async def test_only_nodes_that_slurm_cannot_use_are_down(slurm: SlurmClient, login: LoginNode) -> None:
    rows = "n1|down*|Not responding\nn2|idle|none\nn3|alloc*|none\nn4|drain|repair\n"
    login.answers["sinfo"] = Completed(0, rows, "")
    assert await slurm.down_nodes("n[1-4]") == {"n1": "down*, Not responding", "n3": "alloc*"}
    assert "-a" in login.called("sinfo")[0], "a node may be in hidden partitions only"


async def test_cancelling_a_job_that_has_ended_is_no_error(slurm: SlurmClient, login: LoginNode) -> None:
    login.answers["scancel"] = Completed(1, "", "scancel: error: Kill job error: Invalid job id specified")
    await slurm.cancel(["7"])
    denied = "scancel: error: Kill job error on job id 7: Access/permission denied"
    login.answers["scancel"] = Completed(1, "", denied)
    with pytest.raises(ConfigError, match="Access/permission denied"):
        await slurm.cancel(["7"])
    ended = "scancel: error: Kill job error on job id 6: Invalid job id specified\n"
    login.answers["scancel"] = Completed(1, "", f"team01: welcome\n{ended}")
    await slurm.cancel(["6"])
    for one, other in ((ended, denied), (denied + "\n", ended)):
        login.answers["scancel"] = Completed(1, "", one + other)
        with pytest.raises(ConfigError, match="Access/permission denied"):
            await slurm.cancel(["6", "7"])
    for text in ("Unable to contact slurm controller", "a text that nobody knows"):
        login.answers["scancel"] = Completed(1, "", text)
        with pytest.raises(SlurmUnavailable):
            await slurm.cancel(["7"])


async def test_a_job_whose_id_another_one_has_is_found_by_its_directory(
    slurm: SlurmClient, login: LoginNode
) -> None:
    login.answers["squeue"] = Completed(0, squeue("9", "RUNNING", "/w/other"), "")
    login.answers["sacct"] = Completed(
        0, sacct("9", "COMPLETED") + sacct("9", "RUNNING").replace("/w/a", "/w/other"), ""
    )
    assert (await slurm.find(["9"]))["9"].state == "RUNNING"
    found = (await slurm.find(["9"], directories={"9": "/w/a"}))["9"]
    assert (found.state, found.directory) == ("COMPLETED", "/w/a")
    assert await slurm.find(["9"], directories={"9": "/w/never-ran"}) == {}
    record = await slurm.accounting("9", ended=True, directory="/w/a")
    assert record and record.state == "COMPLETED"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (
            "OSError: [Errno 28] No space left on device: '/w/a'",
            "No space left on device: '/w/a'. Free space",
        ),
        ("OSError: [Errno 30] 読み込み専用ファイルシステムです: '/w/a'", "読み込み専用"),
        ("OSError: [Errno 122] Disk quota exceeded: '/w/a'", "Disk quota exceeded"),
    ],
)
async def test_a_workspace_that_cannot_be_written_is_a_final_error_that_names_it_and_keeps_no_secrets(
    slurm: SlurmClient, login: LoginNode, last: str, said: str
) -> None:
    login.answers["submit"] = Completed(1, "", f"Traceback (most recent call last):\n  File ...\n{last}\n")
    with pytest.raises(WorkspaceNotWritable, match="the workspace /w on cluster 'here' cannot be") as caught:
        await slurm.submit(JOB, "/w/a", "llmb-a", {}, {"hub": "hf_x"})
    assert said in str(caught.value)
    assert login.called("rm") == [["rm", "-rf", "--", "/w/a/secrets"]]


async def test_another_error_of_a_helper_is_passed_on(slurm: SlurmClient, login: LoginNode) -> None:
    login.answers["submit"] = Completed(1, "", "OSError: [Errno 5] Input/output error: '/w/a'\n")
    with pytest.raises(CommandFailed, match="Input/output error"):
        await slurm.submit(JOB, "/w/a", "llmb-a", {}, {})
