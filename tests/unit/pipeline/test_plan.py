"""Plan of a run, from form, recipe and cluster file."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.config.loader import load_cluster
from llm_bridge.config.recipe import STAGES
from llm_bridge.config.verl_settings import MODEL
from llm_bridge.exceptions import ConfigError
from llm_bridge.pipeline import unchanged
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.pipeline.stages import (
    merge,
    ppo,
    prequeued_ray_cluster,
    ray_cluster,
    sft,
    sft_job,
    sft_merge,
    upload,
)
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm import fingerprint

RUN = ("post_training", "manual__2026-11-22T22:39:24+00:00")


def plan(**params: Any) -> Plan:
    return make_plan({"recipe": "tiny_cpu", "cluster": "local", **params}, *RUN)


def test_empty_fields_leave_the_recipes_values() -> None:
    made = plan(run_name=None, base_model="", repo_id=None, nodes=None, force_stages=None)
    assert made.recipe.base_model == "demo/tiny-llama"
    assert made.recipe.hub.repo_id == "demo/tiny-llama-gsm8k"
    assert made.nodes("sft") == made.nodes("ppo") == 2
    assert made.run_name == RUN[1] and not made.force_stages


def test_the_form_wins_over_the_recipe() -> None:
    # With four GPUs, a GPU has two answers of a mini batch, and four rows of a batch of SFT.
    micro = "ppo_micro_batch_size_per_gpu=2"
    lines = f"ppo.actor_rollout_ref.actor.{micro}\nppo.critic.{micro}\nsft.data.micro_batch_size_per_gpu=4"
    made = plan(base_model="/models/x", repo_id="me/mine", nodes=4, run_name="n", overrides=lines)
    assert (made.base_model_path, made.recipe.hub.repo_id, made.run_name) == ("/models/x", "me/mine", "n")
    assert made.nodes("sft") == made.nodes("ppo") == 4
    assert made.nodes("merge") == 1


def test_a_micro_batch_of_sft_that_does_not_divide_a_gpus_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sft\.verl: data\.micro_batch_size_per_gpu=3 does not divide the"):
        plan(overrides="sft.data.micro_batch_size_per_gpu=3")


def test_a_plan_survives_its_transfer_between_tasks() -> None:
    made = plan()
    assert Plan.model_validate(made.model_dump(mode="json")) == made


def test_each_stage_takes_the_outputs_of_the_previous_one() -> None:
    made = plan()
    assert sft_merge(made).settings["checkpoint_dir"] == sft(made).settings["checkpoint_dir"]
    assert ppo(made).settings["actor_path"] == sft_merge(made).settings["output_dir"]
    assert merge(made).settings["checkpoint_dir"] == ppo(made).settings["checkpoint_dir"]
    assert sft_merge(made).settings["trained_from"] == sft(made).settings["model_path"]
    assert merge(made).settings["trained_from"] == ppo(made).settings["actor_path"]
    assert upload(made).settings["model_dir"] == merge(made).settings["output_dir"]


def test_ppo_starts_from_the_base_model_if_the_recipe_requires_it_or_sft_is_not_selected(
    include: Path,
) -> None:
    assert plan().ppo_starts_from.endswith("/sft/model")
    assert plan(stages=["prepare", "ppo", "merge"]).ppo_starts_from == plan().base_model_path
    recipe = (
        (include / "recipes" / "tiny_cpu.yaml").read_text().replace("ppo:\n", "ppo:\n  init_from: base\n")
    )
    (include / "recipes" / "tiny_cpu.yaml").write_text(recipe)
    assert plan().ppo_starts_from == plan().base_model_path


def test_a_run_without_ppo_uploads_the_sft_model() -> None:
    made = plan(stages=["sft", "evaluate", "upload"])
    assert upload(made).settings["model_dir"] == sft_merge(made).settings["output_dir"]


def with_lora(include: Path, *trained: str, **keys: Any) -> None:
    """Let the tiny recipe train LoRA adapters and upload the last one."""
    file = include / "recipes" / "tiny_cpu.yaml"
    recipe = yaml.safe_load(file.read_text())
    for stage in trained:
        recipe[stage]["verl"][f"{MODEL[stage]}.lora_rank"] = 8  # type: ignore[index]
    recipe["hub"]["lora"] = "adapter"
    recipe["ppo"] |= keys
    file.write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize(
    ("trained", "stages", "keys", "message"),
    [
        ((), ["sft", "upload"], {}, "but sft trains all weights: set sft.verl: model.lora_rank"),
        (("sft",), None, {}, "but ppo trains all weights: set ppo.verl: actor_rollout_ref.model.lora_rank"),
        (("sft", "ppo"), None, {}, "PPO starts from SFT's model, which is not on the Hub"),
    ],
)
def test_an_adapter_that_nobody_could_load_from_the_hub_is_refused(
    include: Path, trained: tuple[str, ...], stages: Any, keys: dict[str, Any], message: str
) -> None:
    with_lora(include, *trained, **keys)
    with pytest.raises(ConfigError, match=message):
        plan(**({"stages": stages} if stages else {}))


def test_an_adapter_of_a_model_that_is_not_on_the_hub_is_refused(include: Path) -> None:
    with_lora(include, "sft")
    with pytest.raises(ConfigError, match="base_model is the path /models/x"):
        plan(stages=["sft", "upload"], base_model="/models/x")


def test_only_the_merge_of_the_published_model_leaves_the_adapter_alone(include: Path) -> None:
    with_lora(include, "sft", "ppo", init_from="base")
    assert sft_merge(plan(stages=["sft", "evaluate", "upload"])).settings["adapter_of"] == "demo/tiny-llama"
    both = plan()
    assert merge(both).settings["adapter_of"] == "demo/tiny-llama"
    assert "adapter_of" not in sft_merge(both).settings
    assert "adapter_of" not in sft_merge(plan(stages=["sft"])).settings


def test_ppo_starts_from_the_merged_model_of_a_lora_sft(include: Path) -> None:
    with_lora(include, "sft")
    made = plan(stages=["sft", "ppo", "merge"])
    assert "adapter_of" not in sft_merge(made).settings
    assert ppo(made).settings["actor_path"] == sft_merge(made).settings["output_dir"]


def test_stages_run_in_their_order_independent_of_the_form() -> None:
    assert plan(stages=["merge", "ppo", "sft"]).stages == ["sft", "ppo", "merge"]


@pytest.mark.parametrize("selected", [None, []])
def test_a_form_without_stages_has_those_of_the_recipe_or_all(include: Path, selected: Any) -> None:
    assert plan(stages=selected).stages == list(STAGES)
    change(include / "recipes" / "tiny_cpu.yaml", stages=["upload", "evaluate", "prepare", "sft"])
    assert plan(stages=selected).stages == ["prepare", "sft", "evaluate", "upload"]
    assert plan(stages=["sft"]).stages == ["sft"]


def test_stages_on_cpus_request_no_gpus() -> None:
    made = plan()
    assert ray_cluster(made).resources.gpus_per_node == 1
    assert merge(made).resources.gpus_per_node == upload(made).resources.gpus_per_node == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"base_model": "a b/c"}, "the trigger form(.|\n)*base_model"),
        ({"base_model": "a/b;rm"}, "base_model"),
        ({"repo_id": "no-owner"}, "repo_id: must be OWNER/NAME"),
        *(
            ({"repo_id": f"me/{name}"}, "repo_id: must be OWNER/NAME")
            for name in ("my--model", "m-", "m.git")
        ),
        ({"base_model": "me/a..b"}, "base_model: must be OWNER/NAME"),
        ({"base_model": "/etc/../etc"}, "base_model: must be an absolute path"),
        ({"run_name": "a\nb"}, "run_name: must be one line of printable text"),
        ({"run_name": "x" * 101}, "run_name"),
        ({"nodes": 0}, "nodes"),
        ({"nodes": "two"}, "nodes"),
        ({"stages": ["evil"]}, "'prepare', 'sft', 'ppo', 'merge', 'evaluate' or 'upload'"),
        ({"evil": 1}, "evil: no such key. Allowed here: allocation, base_model, cluster"),
        ({"recipe": "nope"}, "'nope' is not one of the recipes .* tiny_cpu"),
        ({"cluster": "nope"}, "'nope' is not one of the clusters .* local"),
        ({"cluster": "my site"}, "'my site' is not one of the clusters"),
        ({"stages": ["upload"]}, "has no model to upload"),
        ({"stages": ["prepare", "sft", "merge"]}, "'sft' merges its own.*: leave it out, choose 'ppo' too"),
        ({"stages": ["sft", "ppo", "upload"]}, "choose it too"),
        ({"recipe": "gsm8k_llama32_1b", "cluster": None}, "no cluster: choose one in the form"),
    ],
)
def test_an_invalid_run_is_refused_with_the_reason(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**params)


def test_more_gpus_than_a_node_has_are_refused_before_submission(include: Path) -> None:
    recipe = (
        (include / "recipes" / "tiny_cpu.yaml").read_text().replace("gpus_per_node: 1", "gpus_per_node: 9")
    )
    (include / "recipes" / "tiny_cpu.yaml").write_text(recipe)
    with pytest.raises(ConfigError, match="needs 9 GPUs per node, but a node has 8"):
        plan()


def change(file: Path, **keys: Any) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))


@pytest.mark.parametrize(
    ("verl", "message"),
    [
        ({"model.name": "???"}, r"model.name='\?\?\?' cannot be passed to verl.*missing value"),
        ({"data.extra": [{"a key": 1}]}, "data.extra=.*hydra cannot represent the dict key 'a key'"),
        ({"data.when": datetime.date(2026, 1, 1)}, "data.when=.*hydra cannot represent a date"),
        ({"optim.lr": float("inf")}, "optim.lr=inf cannot be passed to verl"),
        ({"+++data.x": 1}, "is not a verl key"),
        ({"~data.x": 1}, "is not a verl key"),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_setting_that_cannot_reach_verl_is_refused_with_its_key(
    include: Path, stage: str, verl: dict[str, Any], message: str
) -> None:
    change(include / "recipes" / "tiny_cpu.yaml", **{stage: {"verl": verl}})
    with pytest.raises(ConfigError, match=rf"(?s){stage}\.verl.*{message}"):
        plan()


def test_settings_of_a_stage_that_does_not_run_are_not_checked(include: Path) -> None:
    change(include / "recipes" / "tiny_cpu.yaml", ppo={"verl": {"data.x": "???"}})
    assert plan(stages=["sft"]).stages == ["sft"]


def test_all_wrong_values_of_recipe_and_run_are_reported_at_once(include: Path) -> None:
    sft = {"gpus_per_node": 9, "verl": {"a.b": "???", "a.c": "???"}}
    change(include / "recipes" / "tiny_cpu.yaml", sft=sft)
    with pytest.raises(ConfigError) as error:
        plan(stages=["sft", "merge"])
    text = str(error.value)
    assert text.startswith("recipe 'tiny_cpu' on cluster 'local': 5 errors:\n  - stage 'sft' needs 9 GPUs")
    assert "a.b" in text and "a.c" in text and "choose 'ppo' too" in text
    assert "data.train_batch_size=256 is not a multiple of the 18 processes" in text


def test_errors_of_recipe_and_cluster_file_are_reported_at_once(include: Path) -> None:
    change(include / "recipes" / "tiny_cpu.yaml", nods=2)
    change(include / "clusters" / "local.yaml", partitoin="x")
    with pytest.raises(ConfigError, match=r"(?s)nods.*partitoin"):
        plan()


@pytest.mark.parametrize("path", ["/etc/../etc", "/..", "/models/.."])
def test_a_path_with_dots_is_refused_where_it_is_given(include: Path, path: str) -> None:
    with pytest.raises(
        ConfigError, match=r"trigger form.*\n.*base_model: must be an absolute path .* without"
    ):
        plan(base_model=path)
    change(include / "recipes" / "tiny_cpu.yaml", data={"source": path})
    with pytest.raises(
        ConfigError, match=r"tiny_cpu\.yaml.*\n.*data\.source: must be an absolute path .* without"
    ):
        plan()


def test_the_seeds_recipe_is_two_nodes_with_eight_gpus() -> None:
    made = plan(recipe="gsm8k_llama32_1b", repo_id="me/mine")
    assert ray_cluster(made).settings["nodes"] == 2
    assert ray_cluster(made).settings["gpus_per_node"] == 8
    verl = ppo(made).settings["verl"]
    assert verl["data.train_batch_size"] == 256
    assert verl["actor_rollout_ref.rollout.gpu_memory_utilization"] == 0.9
    assert verl["trainer.total_epochs"] == 15


def allocated(include: Path, mode: str, **recipe: Any) -> Plan:
    """The plan of the tiny recipe in one of the three modes."""
    values = yaml.safe_load((include / "recipes" / "tiny_cpu.yaml").read_text())
    (include / "recipes" / "mode.yaml").write_text(yaml.safe_dump({**values, "allocation": mode, **recipe}))
    return plan(recipe="mode")


def test_a_shared_allocation_has_the_time_limit_and_the_results_of_both_stages(include: Path) -> None:
    shared = sft_job(allocated(include, "shared"))
    apart = allocated(include, "per_stage")
    assert shared.resources.time_limit == "0-00:25:00"
    request = fingerprint.job_stage_request(shared, is_first=True)
    one, other = (fingerprint.job_stage_request(make(apart), is_first=True) for make in (sft, sft_merge))
    assert request and one and other
    assert request == one._replace(also=request.also)
    assert list(request.also) == [other._replace(name="merge", directory=sft_merge(apart).directory)]
    settings = {**sft(apart).settings, **ray_cluster(apart).settings, **sft_merge(apart).settings}
    assert shared.settings == settings


def test_a_queued_cluster_has_a_folder_of_its_own(include: Path) -> None:
    made = allocated(include, "queue_ahead")
    ahead = prequeued_ray_cluster(made)
    assert ahead and ahead.directory == f"{made.stage_dir('ppo')}/{attempt_dir.PREQUEUED}"
    options = dict(ahead.resolve(load_cluster("local")).with_dependency("12").directives)
    assert (options["dependency"], options["kill-on-invalid-dep"]) == ("afterok:12", "yes")
    assert prequeued_ray_cluster(allocated(include, "per_stage")) is None


def test_the_forms_allocation_wins_over_the_recipes() -> None:
    assert plan(allocation="shared").allocation == "shared"
    assert plan(allocation="").allocation == "per_stage"


@pytest.mark.parametrize("mode", ["queue_ahead", "shared"])
def test_without_sft_ppo_has_an_allocation_of_its_own(include: Path, mode: str) -> None:
    made = allocated(include, mode).model_copy(update={"stages": ["ppo", "merge"]})
    assert made.allocation == "per_stage"


def test_a_shared_allocation_of_two_sizes_is_refused_with_both_named(include: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft 2 node\(s\) x 1 GPU\(s\), ppo 1 node\(s\) x 1 GPU\(s\)"):
        values = {"ppo": {"nodes": 1, "time_limit": "15"}}
        allocated(include, "shared", **values)


def test_a_reward_that_the_verl_settings_set_too_is_refused(include: Path) -> None:
    file = include / "recipes" / "tiny_cpu.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["ppo"]["reward"] = "gsm8k"
    recipe["ppo"]["verl"]["reward.custom_reward_function.path"] = "/x.py"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(
        ConfigError, match=r"ppo\.reward and reward\.custom_reward_function\.path under ppo\.verl"
    ):
        make_plan({"recipe": "tiny_cpu", "cluster": "local"}, *RUN)


def test_a_ppo_without_a_critic_gets_no_model_for_it() -> None:
    assert ppo(plan()).settings["critic_path"] == ppo(plan()).settings["actor_path"]
    assert "critic_path" not in ppo(plan(recipe="tiny_grpo_cpu")).settings
    override = "ppo.algorithm.adv_estimator=grpo\nppo.actor_rollout_ref.rollout.n=4"
    assert "critic_path" not in ppo(plan(overrides=override)).settings


def test_overrides_of_the_form_change_the_settings_and_so_the_fingerprint() -> None:
    made = plan(overrides="ppo.actor_rollout_ref.actor.optim.lr=5e-6\nsft.data.max_length=128")
    assert ppo(made).settings["verl"]["actor_rollout_ref.actor.optim.lr"] == 5e-6
    assert made.changes == [
        "sft.data.max_length: 256 -> 128",
        "ppo.actor_rollout_ref.actor.optim.lr: 1e-05 -> 5e-06",
    ]
    for job in (sft, ppo):
        before, after = (fingerprint.compute("x", job(each).settings) for each in (plan(), made))
        assert before != after
    assert Plan.model_validate(made.model_dump(mode="json")) == made


def test_fields_for_keys_of_the_recipe_change_the_run_and_so_its_fingerprint() -> None:
    made = plan(**{"sft.optim.lr": "1e-4", "data.max_rows": 32, "ppo.algorithm": "grpo"})
    assert sft(made).settings["verl"]["optim.lr"] == 1e-4
    assert made.data("sft").max_rows == 32 and not made.has_critic
    assert "sft.optim.lr: 0.005 -> 0.0001" in made.changes
    prepared = {"data": {stage: {"report": {"hash": "x"}} for stage in ("sft", "ppo")}}
    assert unchanged.fingerprint_of(made, prepared) != unchanged.fingerprint_of(plan(), prepared)
    assert Plan.model_validate(made.model_dump(mode="json")) == made


def test_a_setting_stands_either_in_its_field_or_in_overrides() -> None:
    with pytest.raises(
        ConfigError, match=r"line 1: sft\.optim\.lr is the field 'Learning rate' of section SFT"
    ):
        plan(overrides="sft.optim.lr=1", **{"sft.optim.lr": "1e-4"})


def test_a_field_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(
        ConfigError, match=r"sft\.optim\.le: no such field.* sft\.optim\.lr,.*lines of overrides"
    ):
        plan(**{"sft.optim.le": "1e-4"})


def test_a_model_that_is_never_published_is_not_uploaded() -> None:
    assert "upload" not in plan(publish="never").stages
    with pytest.raises(ConfigError, match="publish is 'never', but stage 'upload' is selected"):
        plan(publish="never", stages=["prepare", "sft", "upload"])


@pytest.mark.parametrize("text", [None, "", "  \n"])
def test_an_empty_field_for_overrides_changes_nothing(text: Any) -> None:
    assert plan(overrides=text) == plan()


def test_a_setting_of_ppo_that_cannot_work_is_refused_before_anything_is_submitted() -> None:
    with pytest.raises(
        ConfigError, match=r"ppo\.verl: actor_rollout_ref\.rollout\.n=1: .*compares the answers"
    ):
        plan(recipe="tiny_grpo_cpu", overrides="ppo.actor_rollout_ref.rollout.n=1")
    with pytest.raises(
        ConfigError, match=r"algorithm grpo has no critic: remove critic\.optim\.lr from ppo\.verl"
    ):
        plan(recipe="tiny_grpo_cpu", overrides="ppo.critic.optim.lr=1.0e-3")
    only_sft = plan(
        recipe="tiny_grpo_cpu", overrides="ppo.actor_rollout_ref.rollout.n=1", stages=["prepare", "sft"]
    )
    assert only_sft.changes
