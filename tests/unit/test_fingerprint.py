"""What makes a stage's result another one, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.plan import Plan, make_plan
from llm_bridge.slurm.fingerprint import of, of_job
from llm_bridge.stages import merge, ppo, prepare, ray_cluster, sft, sft_merge, upload


def plan(**params: Any) -> Plan:
    return make_plan(
        {"recipe": "gsm8k_llama32_1b", "cluster": "local", "repo_id": "me/x", **params}, "d", "r"
    )


def changed(made: Plan, stage: str, **verl: Any) -> Plan:
    """The plan with other settings of verl, `__` for the dots in their names."""
    part = getattr(made.recipe, stage)
    settings = part.verl | {name.replace("__", "."): value for name, value in verl.items()}
    recipe = made.recipe.model_copy(update={stage: part.model_copy(update={"verl": settings})})
    return made.model_copy(update={"recipe": recipe})


def test_the_same_plan_has_the_same_fingerprint() -> None:
    assert of_job(sft(plan())) == of_job(sft(plan()))


@pytest.mark.parametrize("params", [{"nodes": 4}, {"base_model": "/models/other"}])
def test_size_and_base_model_decide(params: dict[str, Any]) -> None:
    assert of_job(sft(plan(**params))) != of_job(sft(plan()))


@pytest.mark.parametrize(
    "settings",
    [{"optim": {"lr": 1.0e-4}}, {"data": {"train_batch_size": 128}}, {"trainer": {"total_epochs": 3}}],
)
def test_what_verl_learns_with_decides(settings: dict[str, Any]) -> None:
    assert of_job(sft(changed(plan(), "sft", **settings))) != of_job(sft(plan()))


@pytest.mark.parametrize(
    "settings", [{"data__micro_batch_size_per_gpu": 1}, {"trainer__save_freq": 3, "trainer__test_freq": 5}]
)
def test_a_knob_turned_for_memory_or_speed_goes_on_where_the_failed_try_was(settings: dict[str, Any]) -> None:
    assert of_job(sft(changed(plan(), "sft", **settings))) == of_job(sft(plan()))


def test_gpu_memory_of_the_rollout_is_such_a_knob_too() -> None:
    less = changed(plan(), "ppo", actor_rollout_ref__rollout__gpu_memory_utilization=0.5)
    jobs = [ppo(plan()), ppo(less)]
    assert jobs[0].settings != jobs[1].settings
    assert len({of("ppo.py", job.settings) for job in jobs}) == 1


def test_a_runs_name_decides_nothing() -> None:
    assert of_job(sft(plan(run_name="one"))) == of_job(sft(plan(run_name="two")))


def test_each_stage_takes_the_result_of_the_one_before() -> None:
    made = plan()
    behind = [sft_merge(made), ppo(made), merge(made), upload(made)]
    before = [sft(made), sft_merge(made), ppo(made), merge(made)]
    for job, source in zip(behind, before, strict=True):
        assert job.result and job.result.inputs == [source.directory]
    assert ray_cluster(made).result is None


def test_only_what_other_runs_use_too_is_shared() -> None:
    made = plan()
    for job in (sft(made), sft_merge(made), merge(made)):
        assert job.result and not job.result.shared
        assert all(path.startswith(f"{made.directory}/") for path in job.result.outputs)
    assert prepare(made).result and not prepare(made).result.outputs  # type: ignore[union-attr]


def test_force_stages_names_the_stages_that_are_made_anew() -> None:
    made = plan(force_stages=["sft"])
    for job in (sft(made), sft_merge(made)):
        assert job.result and job.result.request("f", fresh=True)["force"]
        assert not job.result.request("f", fresh=False)["force"]
    assert not merge(made).result.force  # type: ignore[union-attr]
