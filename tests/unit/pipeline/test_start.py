"""What a run starts from: the fields start_stage and start_from of the form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.exceptions import ConfigError
from llm_bridge.pipeline.check import planned_jobs
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.pipeline.publication import card
from llm_bridge.pipeline.stages import evaluate, merge, ppo, prepare, upload
from llm_bridge.pipeline.unchanged import fingerprint_of
from llm_bridge.remote.node.hub.upload import read_settings
from llm_bridge.slurm import fingerprint

RUN = ("post_training", "manual__2")
OTHER = "manual__2026-11-22T22:39:24+00:00"


def plan(stage: str | None, source: str | None, **params: Any) -> Plan:
    form = {"recipe": "tiny_cpu", "cluster": "local", "start_stage": stage, "start_from": source, **params}
    return make_plan(form, *RUN)


def change(include: Path, **keys: Any) -> None:
    file = include / "recipes" / "tiny_cpu.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))


def directory_of(run: str) -> str:
    return f"{plan(None, None).workspace}/post_training/{run}"


def test_a_run_that_starts_at_ppo_takes_sft_of_another_run_over() -> None:
    made = plan("ppo", OTHER)
    other = directory_of("manual__2026-11-22T22-39-24-00-00-8f7d3a")  # only its parent counts here
    assert made.start and made.start.run and made.start.run.rpartition("/")[0] == other.rpartition("/")[0]
    assert made.stages == ["prepare", "ppo", "merge", "evaluate", "upload"]
    sft = f"{made.start.run}/sft"
    job = ppo(made)
    assert job.settings["actor_path"] == f"{sft}/model"
    assert job.output and f"{sft}/merge" in job.output.inputs, "PPO runs again when that result is made again"
    assert job.directory == f"{made.directory}/ppo"
    assert evaluate(made).settings["models"]["sft"] == f"{sft}/model"
    assert merge(made).settings["output_dir"] == f"{made.directory}/merge/model"
    assert {each["directory"] for each in card(made)["jobs"]} >= {sft, f"{made.directory}/ppo"}
    assert card(made)["started_from"].endswith("at stage ppo")
    assert planned_jobs(made)


def test_a_runs_directory_names_it_as_its_id_does() -> None:
    by_id = plan("ppo", OTHER).start
    assert by_id and by_id.run
    assert plan("ppo", by_id.run).start == by_id
    other_dag = by_id.run.replace("/post_training/", "/nightly_tiny/")
    found = plan("ppo", other_dag).start
    assert found and found.run == other_dag


def test_a_run_that_starts_at_merge_merges_the_other_runs_checkpoints_into_its_own_model() -> None:
    made = plan("merge", "other")
    made = made.model_copy(update={"start": made.start and made.start.model_copy(update={"ppo_from": "/x"})})
    job = merge(made)
    other = directory_of("other")
    assert job.settings["checkpoint_dir"] == f"{other}/ppo/checkpoints"
    assert job.settings["trained_from"] == "/x"
    assert job.output and job.output.inputs == [f"{other}/ppo"]
    assert job.settings["output_dir"] == f"{made.directory}/merge/model"


@pytest.mark.parametrize("stage", ["evaluate", "upload"])
def test_a_run_that_starts_behind_the_training_takes_the_other_runs_model(include: Path, stage: str) -> None:
    change(include, publish={})
    made = plan(stage, "other", repo_id="me/mine")
    assert made.final_model == f"{directory_of('other')}/merge/model"
    assert upload(made).settings["model_dir"] == made.final_model
    assert made.stages == ["prepare", *(("evaluate", "upload") if stage == "evaluate" else ("upload",))]


@pytest.mark.parametrize(
    ("source", "path"),
    [("/models/mine", "/models/mine"), ("me/mine", "/models/me--mine")],
)
def test_a_model_takes_the_place_of_sfts(source: str, path: str) -> None:
    made = plan("ppo", source)
    expected = path if source.startswith("/") else f"{made.workspace}{path}"
    assert ppo(made).settings["actor_path"] == expected
    assert evaluate(made).settings["models"]["sft"] == expected
    wanted = prepare(made).settings["start_model"]
    assert (wanted["source"], wanted["directory"]) == (source, expected)
    assert "ppo.verl.actor_rollout_ref.model.custom_chat_template" in wanted["chat_templates"]
    only = plan("evaluate", source)
    assert only.final_model == expected and only.stages == ["prepare", "evaluate", "upload"]


def test_a_model_that_a_run_made_is_an_input_so_that_keep_runs_leaves_it() -> None:
    workspace = plan(None, None).workspace
    for model, made_by in (("sft/model", "sft/merge"), ("merge/model", "merge")):
        job = ppo(plan("ppo", f"{workspace}/dag/run/{model}"))
        assert job.output and f"{workspace}/dag/run/{made_by}" in job.output.inputs


@pytest.mark.parametrize(
    ("stage", "source"), [(None, None), ("merge", "/runs/old/ppo/checkpoints"), ("upload", "/models/mine")]
)
def test_the_uploader_takes_the_settings_of_a_run_whatever_it_starts_from(
    tmp_path: Path, include: Path, stage: str | None, source: str | None
) -> None:
    change(include, publish={})
    made = plan(stage, source)
    if made.start:  # as check has found it
        made = made.model_copy(update={"start": made.start.model_copy(update={"id": "abc"})})
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(upload(made).settings))
    assert read_settings(file).started_from == ("abc" if stage else None)


def test_checkpoints_are_merged_from_their_own_directory() -> None:
    made = plan("merge", "/runs/old/ppo/checkpoints")
    job = merge(made)
    assert job.settings["checkpoint_dir"] == "/runs/old/ppo/checkpoints"
    assert job.output and not job.output.inputs


def test_the_fingerprints_of_later_stages_depend_on_the_files_that_a_run_starts_from() -> None:
    made = plan("ppo", "/models/mine")

    def with_id(value: str) -> Plan:
        return made.model_copy(update={"start": made.start and made.start.model_copy(update={"id": value})})

    first, second = with_id("a"), with_id("b")
    for build in (evaluate, upload):
        assert fingerprint.job_fingerprint(build(first)) != fingerprint.job_fingerprint(build(second))
    assert fingerprint.compute("ppo", ppo(first).settings) != fingerprint.compute("ppo", ppo(second).settings)
    prepared = {"data": {"ppo": {"report": {"hash": "h"}}}}
    assert fingerprint_of(first, prepared) != fingerprint_of(second, prepared)


def test_a_run_that_starts_from_nothing_has_the_settings_that_it_had_before() -> None:
    made = plan("", "")
    assert made.start is None
    for build in (prepare, merge, evaluate, upload):
        assert not {"started_from", "start_model"} & set(build(made).settings)


@pytest.mark.parametrize(
    ("stage", "source", "params", "message"),
    [
        ("ppo", "", {}, "start_stage is 'ppo', but start_from is empty"),
        ("", "other", {}, "start_stage is empty: choose the first stage that runs, one of ppo, merge"),
        ("sft", "other", {}, "start_stage: Input should be 'ppo', 'merge', 'evaluate' or 'upload'"),
        ("ppo", RUN[1], {}, "start_from is this run itself"),
        ("ppo", "a b/c", {}, "start_from: must be OWNER/NAME.*or the id of a run"),
        ("ppo", "/a/../b", {}, "start_from: must be an absolute path"),
        ("ppo", "/a/$(rm)", {}, "start_from: must be an absolute path"),
        ("merge", "me/mine", {}, "'merge' merges checkpoints"),
        ("ppo", "o", {"stages": ["sft", "ppo"]}, "stages has sft, which run o replaces: remove it"),
        ("merge", "o", {"stages": ["evaluate"]}, "which stages does not have"),
        ("ppo", "me/mine", {"stages": ["ppo"]}, "on the Hub, which stage 'prepare' downloads"),
    ],
)
def test_a_start_that_cannot_work_is_refused_with_its_field(
    stage: str, source: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        plan(stage, source, **params)


def test_a_recipe_whose_ppo_starts_from_the_base_model_cannot_start_from_another(include: Path) -> None:
    file = include / "recipes" / "tiny_cpu.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["ppo"]["init_from"] = "base"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match=r"ppo\.init_from is base in include/recipes/tiny_cpu\.yaml"):
        plan("ppo", "other")


def test_a_plan_with_a_start_survives_its_transfer_between_tasks() -> None:
    made = plan("merge", "other")
    assert Plan.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("stage", "source", "inputs"),
    [
        ("ppo", OTHER, ["{run}/sft/merge"]),
        ("merge", OTHER, ["{run}/sft/merge", "{run}/ppo"]),
        ("evaluate", OTHER, ["{run}/sft/merge", "{run}/merge"]),
        ("merge", "{workspace}/d/r/ppo/checkpoints", ["{workspace}/d/r/ppo"]),
        ("ppo", "{workspace}/d/r/sft/model", ["{workspace}/d/r/sft/merge"]),
        ("ppo", "/models/base", []),
        ("ppo", "org/model", []),
        (None, None, []),
    ],
)
def test_what_a_run_starts_from_is_in_use_from_prepare_on(
    stage: str | None, source: str | None, inputs: list[str]
) -> None:
    workspace = plan(None, None).workspace
    made = plan(stage, source and source.format(workspace=workspace))
    run = made.start.run if made.start else ""
    output = prepare(made).output
    assert output and output.inputs == [path.format(run=run, workspace=workspace) for path in inputs]


def test_blanks_around_a_pasted_run_id_are_no_part_of_it() -> None:
    assert plan("ppo", f" {OTHER}\t").start == plan("ppo", OTHER).start
