"""Jobs of the stages: settings, secrets, and resources; test_plan.py follows paths from stage to stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.exceptions import ConfigError
from llm_bridge.pipeline import stages
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm import batch_script
from llm_bridge.slurm.fingerprint import job_fingerprint


def edit(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def plan(**params: Any) -> Plan:
    return make_plan({"recipe": "tiny_cpu", "cluster": "local", **params}, "d", "r")


@pytest.fixture
def tokens(include: Path) -> Path:
    """A cluster file with connections for the Hub and W&B, and a recipe that uses W&B."""
    edit(include / "clusters" / "local.yaml", hub={"conn_id": "hub"}, wandb_conn_id="wandb")
    edit(include / "recipes" / "tiny_cpu.yaml", logger=["console", "wandb"])
    return include


def test_a_job_gets_only_the_secrets_that_it_needs(tokens: Path) -> None:
    made = plan()
    hub, wandb = {"hub": "hub"}, {"wandb": "wandb"}
    assert stages.prepare(made).secrets == {**hub, **wandb}, "it tries both"
    assert stages.upload(made).secrets == hub
    assert stages.sft(made).secrets == stages.ray_cluster(made).secrets == wandb
    assert stages.sft_merge(made).secrets == stages.merge(made).secrets == {}


def test_a_run_on_local_files_needs_no_hub_until_it_uploads(tokens: Path) -> None:
    edit(tokens / "recipes" / "tiny_cpu.yaml", data={"source": "/data/gsm8k"}, logger=["console"])
    made = plan(base_model="/models/x")
    assert stages.prepare(made).secrets == {} and stages.upload(made).secrets == {"hub": "hub"}


def test_without_wandb_in_the_recipe_no_job_gets_its_key(tokens: Path) -> None:
    edit(tokens / "recipes" / "tiny_cpu.yaml", logger=["console"])
    assert stages.sft(plan()).secrets == {} and "wandb" not in stages.prepare(plan()).secrets


def test_a_wandb_run_belongs_to_one_stage_of_one_run_as_long_as_its_settings_are_the_same(
    tokens: Path,
) -> None:
    def ids(**params: Any) -> list[str]:
        made = plan(run_name="Grüße / 1.5 " + 80 * "x", **params)
        return [job.settings["wandb_run_id"] for job in (stages.sft(made), stages.ppo(made))]

    first = ids()
    assert ids() == first and len({*first, *ids(nodes=1)}) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id) for run_id in first)
    job = stages.sft(plan())
    other = job.model_copy(update={"settings": job.settings | {"wandb_run_id": "x"}})
    assert job_fingerprint(other) == job_fingerprint(job)
    edit(tokens / "recipes" / "tiny_cpu.yaml", logger=["console"])
    assert "wandb_run_id" not in stages.sft(plan()).settings


def test_the_template_of_every_job_exists() -> None:
    made = plan()
    jobs = [stages.prepare, stages.sft, stages.sft_merge, stages.ray_cluster, stages.sft_then_ray]
    jobs += [stages.merge, stages.evaluate, stages.upload]
    assert {build(made).template for build in jobs} <= set(batch_script.templates())


def test_only_trainings_are_signalled_before_their_time_limit() -> None:
    made = plan()
    assert stages.sft(made).signal_before_timeout and stages.ray_cluster(made).signal_before_timeout
    assert not stages.prepare(made).signal_before_timeout and not stages.merge(made).signal_before_timeout


def test_without_preflight_in_the_cluster_file_nodes_are_not_checked(include: Path) -> None:
    preflight = stages.sft(plan()).settings["preflight"]
    assert (preflight["gpus_per_node"], preflight["device"], preflight["ray"]) == (1, "cpu", False)
    assert stages.ray_cluster(plan()).settings["preflight"]["ray"]
    edit(include / "clusters" / "local.yaml", preflight=None)
    assert stages.sft(plan()).settings["preflight"] is None


def test_a_shared_job_is_ready_when_sft_is_done() -> None:
    shared = stages.sft_then_ray(plan(allocation="shared"))
    assert shared.ready_file == attempt_dir.SFT_DONE and shared.output is None
    assert [part.template for part in shared.produces] == ["sft", "merge"]
    assert shared.settings["preflight"]["ray"] and shared.settings["model_path"]


def test_force_applies_to_the_selected_stages_only() -> None:
    made = plan(force_stages=["merge"])
    merge, upload = stages.merge(made).output, stages.upload(made).output
    assert merge and merge.force and upload and not upload.force


def test_ppo_runs_in_the_ray_cluster_of_its_stage() -> None:
    made = plan()
    assert stages.ppo(made).directory == stages.ray_cluster(made).directory == made.stage_dir("ppo")
    assert stages.ppo(made).settings["nodes"] == stages.ray_cluster(made).settings["nodes"]


@pytest.mark.parametrize(
    ("params", "keys"),
    [
        ({}, ["sft.verl.model.custom_chat_template"]),
        ({"stages": ["ppo"]}, ["ppo.verl.actor_rollout_ref.model.custom_chat_template"]),
        (
            {"stages": ["prepare"]},
            [
                "sft.verl.model.custom_chat_template",
                "ppo.verl.actor_rollout_ref.model.custom_chat_template",
            ],
        ),
    ],
)
def test_prepare_checks_the_chat_template_of_each_stage_that_starts_from_the_base_model(
    params: dict[str, Any], keys: list[str]
) -> None:
    assert list(stages.prepare(plan(**params)).settings["chat_templates"]) == keys


def with_data(include: Path, **recipe: Any) -> None:
    edit(include / "recipes" / "tiny_cpu.yaml", **recipe)


def test_stages_with_the_same_data_share_a_directory_and_it_is_their_input(include: Path) -> None:
    entries = stages.prepare(plan()).settings["data"]
    assert [entry["stages"] for entry in entries] == [["sft", "ppo"]]
    directory = entries[0]["directory"]
    assert directory.endswith("/data/demo--gsm8k-tiny--main")
    for job in (stages.sft(plan()), stages.ppo(plan())):
        assert directory in job.output.inputs
        assert job.settings["train_files"] == f"{directory}/train.parquet"


def test_a_stage_with_data_of_its_own_has_a_directory_of_its_own(include: Path) -> None:
    own = {"source": "/data/chat.jsonl", "format": "chat", "too_long": "drop"}
    with_data(include, sft={"data": own, "verl": {"data.max_length": 64}})
    entries = stages.prepare(plan()).settings["data"]
    assert [entry["stages"] for entry in entries] == [["sft"], ["ppo"]]
    first = entries[0]["directory"]
    assert stages.sft(plan()).settings["val_files"] == f"{first}/test.parquet"
    with_data(include, sft={"data": own, "verl": {"data.max_length": 128}})
    assert stages.prepare(plan()).settings["data"][0]["directory"] != first, (
        "the limit decides which rows there are"
    )


def test_sft_needs_answers(include: Path) -> None:
    with_data(include, data={"source": "/d.csv", "format": "columns", "columns": {"prompt": "q"}})
    with pytest.raises(ConfigError, match=r"data\.columns has no response, from which SFT learns"):
        plan()
    assert plan(stages=["prepare", "ppo", "merge"])


def test_a_run_of_prepare_alone_prepares_and_checks_what_the_recipe_trains(include: Path) -> None:
    own = {"source": "/data/chat.jsonl", "format": "chat", "too_long": "drop"}
    with_data(include, sft={"data": own, "verl": {"data.max_length": 64}})
    whole, alone = (stages.prepare(plan(**each)).settings for each in ({}, {"stages": ["prepare"]}))
    assert whole["data"] == alone["data"] and list(alone["trainings"]) == ["sft", "ppo"]
    with_data(include, stages=["prepare", "sft", "upload"])
    assert list(stages.prepare(plan(stages=["prepare"])).settings["trainings"]) == ["sft"]


def test_a_reward_is_a_setting_of_ppo_and_a_run_without_one_keeps_its_fingerprint(include: Path) -> None:
    file = include / "recipes" / "tiny_cpu.yaml"
    assert "reward" not in stages.ppo(plan()).settings
    recipe = yaml.safe_load(file.read_text())
    edit(file, ppo=recipe["ppo"] | {"reward": "example", "reward_trial": "warn"})
    made = plan()
    reward = stages.ppo(made).settings["reward"]
    assert reward["terms"] == [{"name": "example"}]
    assert reward["files"]["example"] == (include / "rewards" / "example.py").read_text()
    prepare = stages.prepare(made).settings
    assert prepare["trainings"]["ppo"]["reward"] == reward and prepare["reward_trial"] == "warn"
    (include / "rewards" / "example.py").write_text(reward["files"]["example"] + "# changed\n")
    assert stages.ppo(made).settings["reward"] == reward, "a run keeps its reward"
    assert stages.ppo(plan()).settings["reward"] != reward


def test_an_upload_gets_the_facts_for_its_card_and_its_tags(include: Path) -> None:
    edit(include / "recipes" / "tiny_cpu.yaml", hub={"repo_id": "me/model", "keep_published": 7})
    settings = stages.upload(plan()).settings
    assert settings["tags"] == ["run-r", "latest-good"] and settings["keep_published"] == 7
    card = settings["card"]
    assert card["recipe"] == "tiny_cpu" and set(card["data"]) == {"sft", "ppo"}
    assert [job["name"] for job in card["jobs"]] == ["sft", "ppo", "ppo", "ppo"]


def test_a_pull_request_moves_no_tags(include: Path) -> None:
    edit(include / "recipes" / "tiny_cpu.yaml", hub={"repo_id": "me/model", "pull_request": True})
    settings = stages.upload(plan()).settings
    assert settings["pull_request"] is True and "tags" not in settings


@pytest.mark.parametrize("kind", ["scheduled", "backfill"])
def test_a_scheduled_run_is_a_nightly_model_and_a_recipe_may_have_no_card(include: Path, kind: str) -> None:
    edit(include / "recipes" / "tiny_cpu.yaml", hub={"repo_id": "me/model", "card": False})
    params = {"recipe": "tiny_cpu", "cluster": "local"}
    settings = stages.upload(make_plan(params, "d", f"{kind}__2026-11-27T22:00:00+00:00")).settings
    assert settings["tags"][1:] == ["nightly-2026-11-27", "latest-good"] and "card" not in settings
