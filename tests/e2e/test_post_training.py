"""The whole pipeline, driven by a real scheduler and triggerer, on a real Slurm cluster with real verl."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.airflow_api import ApiError
from testing.programs import run_program
from testing.stack import DAG, RECIPE
from testing.waiting import until

TASKS = [
    *("check", "prepare.run", "prepare.compare", "sft.train", "sft.merge"),
    *("ppo.ray_up", "ppo.submit", "ppo.wait", "ppo.ray_down"),
    *("merge.run", "evaluate.run", "upload.gate", "upload.run", "summary"),
]
# The recipe wants no person's approval.
NOT_IN_THE_RECIPE = {"upload.approval"}


@pytest.fixture(scope="module")
def full_run(stack: Any) -> str:
    """One run of everything, with a name that no shell should ever see; PPO's time limit comes nearer meanwhile."""
    run_id = "full"
    stack.trigger(DAG, run_id, run_name="it's $(touch /tmp/pwned) グ")
    job = wait_for_running(stack, "ppo.ray_up", timeout=900)
    until(lambda: stack.states(DAG, run_id).get("ppo.submit") == "success", 600, what="PPO's Ray job")
    # So near that Slurm warns at once and PPO saves after its first step; later again far enough for the others.
    stack.cluster.run("ctl", ["scontrol", "update", f"jobid={job}", "EndTime=now+7minutes"])
    until(lambda: "is saved now" in stack.log(DAG, run_id, "ppo.wait"), 600, every=2, what="PPO's first step")
    stack.cluster.run("ctl", ["scontrol", "update", f"jobid={job}", "TimeLimit=60"])
    state = stack.api.wait(DAG, run_id, 1800)
    failed = {task: s for task, s in stack.states(DAG, run_id).items() if s not in ("success", "skipped")}
    assert state == "success", failed | {task: stack.log(DAG, run_id, task)[-3000:] for task in failed}
    return run_id


def test_every_task_succeeds(stack: Any, full_run: str) -> None:
    assert stack.states(DAG, full_run) == {
        **dict.fromkeys(TASKS, "success"),
        **dict.fromkeys(NOT_IN_THE_RECIPE, "skipped"),
    }


def test_nothing_runs_on_the_cluster_afterwards(stack: Any, full_run: str) -> None:
    assert stack.queue() == []


def test_the_model_on_the_hub_is_the_one_on_the_cluster(stack: Any, full_run: str, tmp_path: Path) -> None:
    model = stack.api.xcom(DAG, full_run, "summary", "summary")["model"]
    argv = [
        sys.executable,
        "-m",
        "testing.hub_client",
        "verify",
        model["repo_id"],
        model["revision"],
        tmp_path / "m",
    ]
    files = json.loads(run_program(argv, "download the model", tmp_path, stack.hub.client_environment()))
    assert files and all(file["matches"] for file in files)
    here = {file["path"]: file["sha256"] for file in files}
    assert {file["path"]: file["sha256"] for file in model["files"]}.items() <= here.items()
    assert "model.safetensors" in here and "config.json" in here and "tokenizer.json" in here


def test_ppo_started_from_the_sft_result_and_changed_it(stack: Any, full_run: str) -> None:
    run_dir = f"{stack.cluster.workspace}/post_training/{full_run}"
    settings = json.loads(cat(stack, f"{run_dir}/ppo/ray-1/settings.json"))
    assert settings["actor_path"] == f"{run_dir}/sft/model"
    sums = stack.cluster.run(
        "login",
        ["sha256sum", f"{run_dir}/sft/model/model.safetensors", f"{run_dir}/merge/model/model.safetensors"],
        user="svc",
    ).stdout.split()
    assert sums[0] != sums[2]


def test_the_summary_names_every_stages_job_and_times(stack: Any, full_run: str) -> None:
    rows = stack.api.xcom(DAG, full_run, "summary", "summary")["stages"]
    assert [row["name"] for row in rows] == [
        "prepare",
        "sft",
        "sft merge",
        "ray cluster",
        "ppo",
        "merge",
        "evaluate",
        "upload",
    ]
    for row in rows:
        assert row["state"] == "success" and row["job_id"], row
        # Slurm counts whole seconds: a short job may have run for 0 of them.
        assert row["queue_s"] >= 0 and row["run_s"] >= (
            1 if row["name"] in ("sft", "ray cluster", "ppo") else 0
        ), row


def test_the_scores_of_all_models_are_in_the_summary_and_the_last_one_in_the_card(
    stack: Any, full_run: str, tmp_path: Path
) -> None:
    summary = stack.api.xcom(DAG, full_run, "summary", "summary")
    evaluation, model = summary["evaluation"], summary["model"]
    # PostgreSQL sorts the keys of a JSON object by length.
    assert sorted(evaluation["models"]) == ["base", "rl", "sft"] and summary["refused"] is None
    assert len(evaluation["samples"]) == evaluation["rows"] > 1
    assert "is at least min_score 0" in stack.log(DAG, full_run, "upload.gate")
    assert model["score"] == evaluation["models"]["rl"]["score"]
    argv: list[Any] = [sys.executable, "-m", "testing.hub_client", "verify"]
    argv += [model["repo_id"], model["revision"], tmp_path / "m"]
    run_program(argv, "download the model", tmp_path, stack.hub.client_environment())
    card = (tmp_path / "m" / "README.md").read_text()
    assert evaluation["data"]["hash"] in card and f"name: {evaluation['metric']}" in card
    [event] = stack.api.ask("GET", "/api/v2/assets/events", params={"source_run_id": full_run})[
        "asset_events"
    ]
    assert event["extra"]["revision"] == model["revision"] and event["extra"]["score"] == model["score"]


def test_the_output_of_training_is_in_the_tasks_logs(stack: Any, full_run: str) -> None:
    sft = stack.log(DAG, full_run, "sft.train")
    assert "[n1] " in sft and "[n2] " in sft and "train/loss" in sft
    assert "critic" in stack.log(DAG, full_run, "ppo.wait")


def test_the_log_of_ppo_is_short_enough_to_read_and_has_steps_and_warnings_of_their_own(
    stack: Any, full_run: str
) -> None:
    rows = [json.loads(row) for row in stack.log(DAG, full_run, "ppo.wait").splitlines() if row]
    assert len(rows) <= 150
    assert [row["event"] for row in rows if row.get("logger") == "progress"]
    assert any(row["level"] == "warning" and "UserWarning" in row["event"] for row in rows)
    assert any(row["event"].startswith("not shown above: ") for row in rows)
    assert sum("the whole output is in" in row["event"] for row in rows) == 1


def test_ppo_saves_a_step_more_when_slurm_warns_its_cluster_of_the_time_limit(
    stack: Any, full_run: str
) -> None:
    """The recipe saves every second step, and Slurm's warning makes a file of the batch script's."""
    stage = f"{stack.cluster.workspace}/post_training/{full_run}/ppo"
    assert "Slurm warns that the job ends in" in cat(stack, f"{stage}/attempt-1/output.log")
    log = stack.log(DAG, full_run, "ppo.wait")
    assert re.search(r"the job ends in \d+ s: step 1 is saved now", log)
    saved = f"{stage}/checkpoints/global_step_1/critic"
    assert stack.cluster.run("login", ["test", "-d", saved]).returncode == 0


def test_the_runs_name_reached_verl_as_text(stack: Any, full_run: str) -> None:
    settings = json.loads(
        cat(stack, f"{stack.cluster.workspace}/post_training/{full_run}/sft/attempt-1/settings.json")
    )
    assert settings["experiment_name"] == "it's $(touch /tmp/pwned) グ"
    for host in ("login", "n1", "n2"):
        assert stack.cluster.run(host, ["test", "-e", "/tmp/pwned"]).returncode != 0


def test_the_hub_token_is_left_nowhere(stack: Any, full_run: str) -> None:
    """Not in Airflow's database or logs, not in any file of the run, not in what Slurm keeps of its jobs.

    Nor is the W&B key of the Ray cluster, whose normal end is scancel: no attempt has secrets left.
    """
    token = stack.hub.token
    for file in stack.airflow.home.rglob("*"):
        if file.is_file() and "token" not in file.name:
            assert token.encode() not in file.read_bytes(), file
    found = stack.cluster.run("login", ["grep", "-rlF", token, str(stack.cluster.workspace)])
    assert found.stdout == ""
    jobs = stack.cluster.run("ctl", ["scontrol", "show", "job"]).stdout
    assert token not in jobs
    find = ["find", str(stack.cluster.workspace), "-name", "secrets"]
    assert stack.cluster.run("login", find).stdout == ""


def test_a_second_run_finds_model_and_data_there_and_merges_the_checkpoints_of_the_first_one(
    stack: Any, full_run: str
) -> None:
    run_id, start = "merge-again", {"start_stage": "merge", "start_from": full_run}
    assert stack.run(DAG, run_id, stages=["prepare", "merge"], **start) == "success"
    states = stack.states(DAG, run_id)
    assert states["prepare.run"] == states["merge.run"] == "success", states
    assert states["sft.train"] == states["ppo.ray_up"] == "skipped", states
    result = stack.api.xcom(DAG, run_id, "prepare.run")["result"]
    assert len(result["skipped"]) == 2
    merged, first = (stack.api.xcom(DAG, run, "merge.run")["result"] for run in (run_id, full_run))
    assert merged["step"] == first["step"] and merged["model_path"].endswith(f"/{run_id}/merge/model")
    found = stack.api.xcom(DAG, run_id, "summary", "summary")["started_from"]
    assert found == f"run {full_run}, at stage merge"


def test_clearing_a_finished_run_runs_nothing_again_and_says_so(stack: Any, full_run: str) -> None:
    api = stack.api
    model = api.xcom(DAG, full_run, "summary", "summary")["model"]
    before = slurm_jobs(stack)
    clear = {"dag_run_id": full_run, "dry_run": False, "only_failed": False, "reset_dag_runs": True}
    api.ask("POST", "/api/v2/dags/post_training/clearTaskInstances", json=clear)
    assert api.wait(DAG, full_run, 600) == "success"
    assert slurm_jobs(stack) == before
    skipped = {task for task, state in stack.states(DAG, full_run).items() if state == "skipped"}
    assert skipped == {"ppo.ray_up", "ppo.submit", "ppo.wait", "ppo.ray_down"} | NOT_IN_THE_RECIPE
    for task in ("sft.train", "ppo.ray_up", "upload.run"):
        assert "nothing to do" in stack.log(DAG, full_run, task) and "force_stages" in stack.log(
            DAG, full_run, task
        )
    assert api.xcom(DAG, full_run, "summary", "summary")["model"] == model


def test_the_run_page_has_attempts_and_curves_also_of_a_run_that_was_cleared(
    stack: Any, full_run: str
) -> None:
    page = f"/llm-bridge/api/runs/{DAG}/{full_run}"
    run = stack.api.ask("GET", page)
    tasks = [attempt["task"] for attempt in run["attempts"]]
    assert set(tasks) >= {"prepare.run", "sft.train", "ppo.ray_up", "ppo.wait", "merge.run", "upload.run"}
    assert all(attempt["started"] and attempt["ended"] for attempt in run["attempts"]), run["attempts"]
    places = {each["partition"] for each in run["attempts"] if each["kind"] == "slurm"}
    assert places == {stack.site.values["partition"]}
    assert run["gpu_hours"] > 0 and run["evaluation"]["models"] and run["data"]["sft"]["sample"]
    curves = {(c["task"], c["name"]): c for c in stack.api.ask("GET", f"{page}/curves")["curves"]}
    assert len(curves["sft.train", "train/loss"]["x"]) > 1
    assert curves["ppo.wait", "critic/score/mean"]["y"]


def test_a_gate_that_refuses_is_no_failure_and_the_log_the_summary_and_the_run_page_say_why(
    stack: Any, full_run: str
) -> None:
    """Cleared together, the gate waits for check's new plan; nothing is trained or evaluated again."""
    file = stack.site.include / "recipes" / f"{RECIPE}.yaml"
    text, jobs = file.read_text(), slurm_jobs(stack)
    try:
        file.write_text(yaml.safe_dump({**yaml.safe_load(text), "publish": {"min_score": 0.99}}))
        stack.clear(DAG, full_run, "check", "upload.gate", "upload.run", "summary")
        assert stack.api.wait(DAG, full_run, 600) == "success"
    finally:
        file.write_text(text)
    why = "not published because the score .* of the RL model is below min_score 0.99"
    states, summary = stack.states(DAG, full_run), stack.api.xcom(DAG, full_run, "summary", "summary")
    assert states["upload.gate"] == "success" and states["upload.run"] == "skipped", states
    assert summary["model"] is None and re.fullmatch(why, summary["refused"])
    for task in ("upload.gate", "upload.run", "summary"):
        assert re.search(why, stack.log(DAG, full_run, task)), task
    assert re.search(why, json.dumps(stack.api.ask("GET", f"/llm-bridge/api/runs/{DAG}/{full_run}")))
    assert slurm_jobs(stack) == jobs


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shell": ({"base_model": "$(touch /tmp/pwned)/x"}, "base_model"),
    "model": ({"base_model": "/no/such/model"}, "/no/such/model cannot be read"),
    "nodes": (
        {
            "nodes": 16,
            "stages": ["prepare", "sft"],
            "overrides": "sft.data.micro_batch_size_per_gpu=1",
        },
        "Slurm on cluster 'test' refuses the job",
    ),
    "batch": ({"nodes": 9}, "8 answers, which cannot be divided among the 9 replicas of the model"),
    "override": ({"overrides": "ppo.trainer.nnodes=3"}, "line 1 .*trainer.nnodes is set by llm-bridge"),
    "field": ({"data.source": "x"}, r"data\.source \(Data, Data set\): must be OWNER/NAME on the Hub"),
    "partition": ({"cluster": "wrong_partition"}, r"Slurm has no partition 'nope'\. Choose from"),
    "token": ({"cluster": "wrong_token"}, "the Hub .* refuses the token"),
    "start": ({"start_stage": "ppo", "start_from": "no_run"}, "the cluster has no run no_run in"),
    "upload": ({"stages": ["upload"]}, "has no model to upload"),
}


@pytest.fixture(scope="module")
def wrong_runs(stack: Any) -> None:
    """All at once: each waits for Airflow most of its time."""
    for name, (conf, _) in WRONG.items():
        stack.trigger(DAG, f"bad-{name}", **conf)


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_fails_in_the_check_before_anything_is_submitted(
    stack: Any, wrong_runs: None, name: str
) -> None:
    run_id, said = f"bad-{name}", WRONG[name][1]
    assert stack.api.wait(DAG, run_id, 400) == "failed"
    states = stack.states(DAG, run_id)
    assert states["check"] == "failed" and states["prepare.run"] == "upstream_failed"
    assert re.search(said, stack.log(DAG, run_id, "check"))
    # A wrong value is not tried again.
    tries = {t["task_id"]: t["try_number"] for t in stack.api.tasks(DAG, run_id)}
    assert tries["check"] == 1
    assert "hf_wrong_token_123" not in stack.log(DAG, run_id, "check")


@pytest.mark.parametrize(
    "conf",
    [{"recipe": "nope"}, {"cluster": "nope"}, {"nodes": 0}, {"stages": ["evil"]}, {"sft.optim.lr": "evil"}],
)
def test_what_the_form_does_not_offer_is_refused_by_the_api(stack: Any, conf: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="400"):
        stack.trigger(DAG, f"refused-{abs(hash(str(conf)))}", **conf)


def test_one_failure_is_one_mail_and_one_post_with_the_reason(stack: Any) -> None:
    stack.mails.clear()
    stack.posts.clear()
    assert stack.run(DAG, "alerts", timeout=400, base_model="/no/such/model") == "failed"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (stack.mails and stack.posts):
        time.sleep(0.5)
    assert len(stack.mails) == len(stack.posts) == 1
    _, post = stack.posts[0]
    assert "/no/such/model cannot be read" in post["text"] and post["occasion"] == "failure"
    assert "/dags/post_training/runs/alerts/tasks/check" in post["links"]["Log"]
    mail = stack.mails[0]
    assert mail["To"] == "team@example.org" and "check failed" in mail["Subject"]


@pytest.mark.parametrize("moment", ["while its output is followed", "before a trigger could follow it"])
def test_marking_a_running_task_failed_cancels_its_job(stack: Any, moment: str) -> None:
    run_id = moment.split()[0]
    stack.trigger(DAG, run_id, stages=["sft"])
    job = wait_for_job(stack, run_id, "sft.train")
    deadline = time.monotonic() + 60
    while run_id == "while" and "[llm-bridge]" not in stack.log(DAG, run_id, "sft.train"):
        assert time.monotonic() < deadline, "no output in the log"
        time.sleep(0.5)
    path = f"/api/v2/dags/post_training/dagRuns/{run_id}/taskInstances/sft.train"
    stack.api.ask("PATCH", path, json={"new_state": "failed"})
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job]
    deadline = time.monotonic() + 40
    state = ""
    while time.monotonic() < deadline and state != "CANCELLED":
        state = stack.cluster.run("login", ask, user="svc").stdout.strip()
        time.sleep(1)
    assert state == "CANCELLED"


def wait_for_job(stack: Any, run_id: str, task_id: str, timeout: float = 120) -> str:
    """The Slurm job of a task that waits for it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        job = stack.api.xcom(DAG, run_id, task_id, "slurm_job")
        if job and stack.states(DAG, run_id)[task_id] == "deferred":
            return str(job["job_id"])
        time.sleep(1)
    raise AssertionError(f"{task_id} did not submit its job within {timeout} s: {stack.states(DAG, run_id)}")


def wait_for_running(stack: Any, task_id: str, timeout: float) -> str:
    """The running Slurm job of a task; its script has begun."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        rows = stack.cluster.run("login", ["squeue", "-h", "-t", "R", "-o", "%i %j %M"], user="svc").stdout
        for job_id, name, ran in (row.split() for row in rows.splitlines()):
            if task_id in name and ran != "0:00":
                return str(job_id)
        time.sleep(1)
    raise AssertionError(f"no job of {task_id} ran within {timeout} s: {rows}")


def slurm_jobs(stack: Any) -> list[str]:
    """All jobs that there ever were."""
    ask = ["sacct", "-X", "-n", "-P", "-S", "now-1days", "-o", "JobID"]
    return sorted(stack.cluster.run("login", ask, user="svc").stdout.split())


def cat(stack: Any, path: str) -> str:
    return str(stack.cluster.run("login", ["cat", path], user="svc").stdout)
