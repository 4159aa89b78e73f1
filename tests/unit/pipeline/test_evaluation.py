"""The stage evaluate in plan and job: which models, on which rows, and what is refused before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.exceptions import ConfigError
from llm_bridge.pipeline import check, stages
from llm_bridge.pipeline.plan import Plan, make_plan

SFT_ONLY = ["prepare", "sft", "evaluate", "upload"]


@pytest.fixture
def plan(include: Path) -> Any:
    """Make the plan of tiny_cpu with other keys; params have the trigger form's."""

    def make(params: dict[str, Any] | None = None, **keys: Any) -> Plan:
        file = include / "recipes" / "tiny_cpu.yaml"
        recipe = yaml.safe_load((file).read_text())
        del recipe["evaluate"], recipe["publish"]
        recipe["ppo"] |= keys.pop("ppo", {})
        (include / "recipes" / "mine.yaml").write_text(yaml.safe_dump(recipe | keys))
        return make_plan({"recipe": "mine", "cluster": "local", **(params or {})}, "d", "r")

    return make


def test_a_recipe_without_the_key_has_no_such_stage(plan: Any) -> None:
    assert "evaluate" not in plan().stages
    assert plan(evaluate={}).stages == ["prepare", "sft", "ppo", "merge", "evaluate", "upload"]


def test_all_models_of_the_run_are_evaluated_on_rls_held_out_rows(plan: Any) -> None:
    made = plan(evaluate={"rows": 7, "seed": 3})
    settings = stages.evaluate(made).settings
    assert list(settings["models"]) == ["base", "sft", "rl"]
    assert settings["models"]["rl"] == stages.merge(made).settings["output_dir"]
    assert settings["test_file"] == stages.ppo(made).settings["val_files"]
    assert (settings["rows"], settings["seed"], settings["published"]) == (7, 3, None)
    assert settings["decoding"] == {"temperature": 0.0, "top_p": 1.0, "max_tokens": 48}, "as in the training"


def test_a_run_of_sft_alone_is_evaluated_on_its_own_rows_and_prepare_tries_the_reward(plan: Any) -> None:
    made = plan({"stages": SFT_ONLY}, evaluate={}, ppo={"reward": "gsm8k"})
    settings = stages.evaluate(made).settings
    assert list(settings["models"]) == ["base", "sft"]
    assert settings["test_file"] == stages.sft(made).settings["val_files"]
    tried = stages.prepare(made).settings["evaluation_reward"]
    assert tried["train_files"] == settings["test_file"] and tried["reward"] == settings["reward"]
    assert "evaluation_reward" not in stages.prepare(plan(evaluate={})).settings


def test_prepare_makes_the_prompts_that_are_evaluated(plan: Any) -> None:
    made = plan(evaluate={"rows": 7, "harness": "hellaswag"})
    tried, settings = stages.prepare(made).settings["evaluation"], stages.evaluate(made).settings
    assert tried.items() <= settings.items() and tried["rows"] == 7 and tried["harness"] == ["hellaswag"]
    assert not {"evaluation", "evaluation_reward"} & stages.prepare(plan()).settings.keys()


def test_a_new_evaluation_is_a_new_card_and_a_run_without_one_has_none(plan: Any) -> None:
    for stage, params in (("merge", {}), ("sft/merge", {"stages": SFT_ONLY})):
        job = stages.upload(plan(params, evaluate={}))
        assert job.output.inputs == [
            f"{plan().directory}/{stage}",
            stages.evaluate(plan(evaluate={})).directory,
        ]
        assert job.settings["card"]["evaluation"] == job.output.inputs[1]
    alone = stages.upload(plan())
    assert alone.output.inputs == [stages.merge(plan()).directory]
    assert alone.settings["card"]["evaluation"] is None


def test_the_evaluation_has_one_node_and_one_gpu_where_there_are_gpus(plan: Any, include: Path) -> None:
    assert stages.evaluate(plan(evaluate={})).resources.gpus_per_node == 0
    file = include / "clusters" / "local.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"device": "cuda"}))
    resources = stages.evaluate(plan(evaluate={"mem": "64G"})).resources
    assert (resources.nodes, resources.gpus_per_node, resources.mem) == (1, 1, "64G")


def test_the_check_tries_the_job_of_the_evaluation(plan: Any) -> None:
    assert "evaluate" in [job.template for job in check.planned_jobs(plan(evaluate={}))]


def test_only_a_comparison_with_the_published_model_asks_the_hub(plan: Any, include: Path) -> None:
    file = include / "clusters" / "local.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"hub": {"conn_id": "hub"}}))
    job = stages.evaluate(plan(evaluate={}, publish={"better_than": "published"}))
    assert job.settings["published"] == "demo/tiny-llama-gsm8k" and job.secrets == {"hub": "hub"}
    assert stages.evaluate(plan(evaluate={}, publish={"better_than": "base"})).secrets == {}
    uploads = [
        stages.upload(plan(evaluate={}, publish={"better_than": name})) for name in ("published", "base")
    ]
    assert [job.settings.get("better_than_published") for job in uploads] == [True, None], (
        "again at the commit"
    )


def test_the_options_of_the_chat_template_are_those_of_the_training(plan: Any) -> None:
    made = plan(
        evaluate={}, ppo={"verl": {**plan().recipe.ppo.verl, "+data.apply_chat_template_kwargs.think": False}}
    )
    assert stages.evaluate(made).settings["template_options"] == {"think": False}


@pytest.mark.parametrize(
    ("params", "keys", "said"),
    [
        (
            {"stages": ["prepare", "sft", "evaluate"]},
            {},
            "needs the key evaluate in include/recipes/mine.yaml",
        ),
        (
            {"stages": ["prepare", "evaluate"]},
            {"evaluate": {}},
            "has no model to compare with the base model",
        ),
        ({}, {"evaluate": {}, "ppo": {"reward": {"model": "/m"}}}, "cannot score with ppo.reward.model"),
        (
            {},
            {"evaluate": {"gpus_per_node": 99}},
            "a node has 8: lower gpus_per_node in include/recipes/mine.yaml",
        ),
        ({}, {"publish": {"min_score": 0.5}}, "add the key evaluate to include/recipes/mine.yaml"),
        (
            {"stages": ["prepare", "sft", "upload"]},
            {"evaluate": {}, "publish": {"better_than": "base"}},
            "publish.better_than compares scores, but this run does not evaluate: choose stage 'evaluate' too",
        ),
        (
            {"stages": SFT_ONLY},
            {"evaluate": {}, "publish": {"better_than": "sft"}},
            "does not have both an SFT and an RL model",
        ),
        (
            {},
            {
                "evaluate": {},
                "publish": {"better_than": "published"},
                "hub": {"repo_id": "a/b", "card": False},
            },
            "whose score is read from its model card, but hub.card is false: remove hub.card",
        ),
    ],
)
def test_what_could_never_work_is_refused_before_the_run(
    plan: Any, params: Any, keys: Any, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan(params, **keys)
    assert said in str(error.value)


@pytest.mark.parametrize("length", ["abc", 0, -5, 1.5, True, "${data.max_prompt_length}"])
def test_a_length_of_answers_that_is_none_is_refused_although_ppo_does_not_run(
    plan: Any, length: Any
) -> None:
    verl = {**plan().recipe.ppo.verl, "data.max_response_length": length}
    with pytest.raises(ConfigError, match=r"data\.max_response_length, which must be a number of tokens"):
        plan({"stages": SFT_ONLY}, evaluate={}, ppo={"verl": verl})
    plan({"stages": SFT_ONLY}, evaluate={"decoding": {"max_tokens": 9}}, ppo={"verl": verl})


@pytest.mark.parametrize(("chosen", "template"), [(SFT_ONLY, "of SFT"), (None, "of RL")])
def test_the_prompts_have_the_template_of_the_training_that_runs(
    plan: Any, chosen: list[str] | None, template: str
) -> None:
    lines = (
        "sft.model.custom_chat_template: of SFT",
        "ppo.actor_rollout_ref.model.custom_chat_template: of RL",
    )
    overrides = "\n".join(line.replace(": ", "=") for line in lines)
    made = plan({"overrides": overrides, **({"stages": chosen} if chosen else {})}, evaluate={})
    assert stages.evaluate(made).settings["chat_template"] == template


def test_a_reward_that_was_set_by_hand_is_refused(plan: Any) -> None:
    verl = {**plan().recipe.ppo.verl, "reward.custom_reward_function.path": "/r.py"}
    with pytest.raises(ConfigError, match=r"scores with ppo\.reward, but reward.custom_reward_function.path"):
        plan(evaluate={}, ppo={"verl": verl})


def test_conditions_do_not_matter_to_a_run_that_does_not_upload(plan: Any) -> None:
    assert plan({"stages": ["prepare", "sft"]}, publish={"min_score": 0.5}).stages == ["prepare", "sft"]
    assert "upload" in plan(publish="approval").stages, "an approval needs no evaluation"
