"""What a run will do, from form, recipe and cluster file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import load_cluster
from llm_bridge.plan import Plan, make_plan
from llm_bridge.slurm import fingerprint
from llm_bridge.stages import merge, ppo, ray_ahead, ray_cluster, sft, sft_in, sft_merge, upload

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
    made = plan(base_model="/models/x", repo_id="me/mine", nodes=4, run_name="n")
    assert (made.base_model_path, made.recipe.hub.repo_id, made.run_name) == ("/models/x", "me/mine", "n")
    assert made.nodes("sft") == made.nodes("ppo") == 4
    assert made.nodes("merge") == 1


def test_a_plan_survives_the_way_between_tasks() -> None:
    made = plan()
    assert Plan.model_validate(made.model_dump(mode="json")) == made


def test_each_stage_takes_up_what_the_one_before_made() -> None:
    made = plan()
    assert sft_merge(made).settings["checkpoint_dir"] == sft(made).settings["checkpoint_dir"]
    assert ppo(made).settings["actor_path"] == sft_merge(made).settings["output_dir"]
    assert merge(made).settings["checkpoint_dir"] == ppo(made).settings["checkpoint_dir"]
    assert upload(made).settings["model_dir"] == merge(made).settings["output_dir"]


def test_ppo_starts_from_the_base_model_when_the_recipe_says_so_or_sft_is_left_out(include: Path) -> None:
    assert plan().ppo_starts_from.endswith("/sft/model")
    assert plan(stages=["prepare", "ppo", "merge"]).ppo_starts_from == plan().base_model_path
    recipe = (
        (include / "recipes" / "tiny_cpu.yaml").read_text().replace("ppo:\n", "ppo:\n  init_from: base\n")
    )
    (include / "recipes" / "tiny_cpu.yaml").write_text(recipe)
    assert plan().ppo_starts_from == plan().base_model_path


def test_a_run_without_ppo_uploads_the_sft_model() -> None:
    made = plan(stages=["sft", "upload"])
    assert upload(made).settings["model_dir"] == sft_merge(made).settings["output_dir"]


def test_stages_run_in_their_order_whatever_the_form_said() -> None:
    assert plan(stages=["merge", "ppo", "sft"]).stages == ["sft", "ppo", "merge"]


def test_small_stages_ask_for_no_gpus() -> None:
    made = plan()
    assert ray_cluster(made).resources.gpus_per_node == 1
    assert merge(made).resources.gpus_per_node == upload(made).resources.gpus_per_node == 0


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"base_model": "a b/c"}, "the trigger form(.|\n)*base_model"),
        ({"base_model": "a/b;rm"}, "base_model"),
        ({"repo_id": "no-owner"}, "repo_id"),
        ({"run_name": "a\nb"}, "run_name: must be one line of printable text"),
        ({"run_name": "x" * 101}, "run_name"),
        ({"nodes": 0}, "nodes"),
        ({"nodes": "two"}, "nodes"),
        ({"stages": []}, "choose at least one of prepare, sft, ppo, merge, upload"),
        ({"stages": ["evil"]}, "'prepare', 'sft', 'ppo', 'merge' or 'upload'"),
        ({"evil": 1}, "evil: no such key. Allowed here: allocation, base_model, cluster"),
        ({"recipe": "nope"}, "'nope' is not one of the recipes .* tiny_cpu"),
        ({"cluster": "nope"}, "'nope' is not one of the clusters .* local"),
        ({"stages": ["upload"]}, "has no model to upload"),
        ({"stages": ["prepare", "merge"]}, "choose 'ppo' too"),
        ({"stages": ["sft", "ppo", "upload"]}, "choose it too"),
        ({"recipe": "gsm8k_llama32_1b", "cluster": None}, "no cluster: choose one in the form"),
    ],
)
def test_what_cannot_work_is_told_in_one_sentence(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(**params)


def test_more_gpus_than_a_node_has_are_refused_before_slurm_is_asked(include: Path) -> None:
    recipe = (
        (include / "recipes" / "tiny_cpu.yaml").read_text().replace("gpus_per_node: 1", "gpus_per_node: 9")
    )
    (include / "recipes" / "tiny_cpu.yaml").write_text(recipe)
    with pytest.raises(ConfigError, match="asks for 9 GPUs a node, a node has 8"):
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
    import yaml

    values = yaml.safe_load((include / "recipes" / "tiny_cpu.yaml").read_text())
    (include / "recipes" / "mode.yaml").write_text(yaml.safe_dump({**values, "allocation": mode, **recipe}))
    return plan(recipe="mode")


def test_a_shared_allocation_has_the_time_of_both_and_leaves_the_results_of_each(include: Path) -> None:
    shared = sft_in(allocated(include, "shared"))
    apart = allocated(include, "per_stage")
    assert shared.resources.time_limit == "0-00:25:00"
    asked = fingerprint.request(shared, fresh=True)
    one, other = (fingerprint.request(make(apart), fresh=True) for make in (sft, sft_merge))
    assert asked and one and other
    (also,) = asked["also"]
    names = ("fingerprint", "inputs", "outputs")
    assert [asked[n] for n in names] == [one[n] for n in names]
    assert [also[n] for n in names] == [other[n] for n in names]
    assert (also["name"], also["directory"]) == ("merge", sft_merge(apart).directory)
    settings = {**sft(apart).settings, **ray_cluster(apart).settings, **sft_merge(apart).settings}
    assert shared.settings == settings


def test_a_queued_cluster_has_a_folder_of_its_own(include: Path) -> None:
    made = allocated(include, "queue_ahead")
    ahead = ray_ahead(made)
    assert ahead and ahead.directory == f"{made.stage_dir('ppo')}/ahead"
    options = dict(ahead.after("12").directives(load_cluster("local")))
    assert (options["dependency"], options["kill-on-invalid-dep"]) == ("afterok:12", "yes")
    assert ray_ahead(allocated(include, "per_stage")) is None


def test_the_forms_allocation_wins_over_the_recipes() -> None:
    assert plan(allocation="shared").allocation == "shared"
    assert plan(allocation="").allocation == "per_stage"


@pytest.mark.parametrize("mode", ["queue_ahead", "shared"])
def test_without_sft_ppo_comes_by_its_nodes_on_its_own(include: Path, mode: str) -> None:
    made = allocated(include, mode).model_copy(update={"stages": ["ppo", "merge"]})
    assert made.allocation == "per_stage"


def test_a_shared_allocation_of_two_sizes_is_refused_with_both_named(include: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft 2 node\(s\) x 1 GPU\(s\), ppo 1 node\(s\) x 1 GPU\(s\)"):
        values = {"ppo": {"nodes": 1, "time_limit": "15"}}
        allocated(include, "shared", **values)
