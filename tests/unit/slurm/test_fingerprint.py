"""Settings that make a stage's result another one, and settings that do not."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.pipeline.stages import merge, ppo, prepare, ray_cluster, sft, sft_merge, upload
from llm_bridge.slurm.fingerprint import compute, job_fingerprint, job_stage_request


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
    assert job_fingerprint(sft(plan())) == job_fingerprint(sft(plan()))


@pytest.mark.parametrize("params", [{"nodes": 1}, {"base_model": "/models/other"}])
def test_size_and_base_model_decide(params: dict[str, Any]) -> None:
    assert job_fingerprint(sft(plan(**params))) != job_fingerprint(sft(plan()))


@pytest.mark.parametrize(
    "settings",
    [{"optim": {"lr": 1.0e-4}}, {"data": {"train_batch_size": 128}}, {"trainer": {"total_epochs": 3}}],
)
def test_hyperparameters_decide(settings: dict[str, Any]) -> None:
    assert job_fingerprint(sft(changed(plan(), "sft", **settings))) != job_fingerprint(sft(plan()))


@pytest.mark.parametrize(
    "settings", [{"data__micro_batch_size_per_gpu": 1}, {"trainer__save_freq": 3, "trainer__test_freq": 5}]
)
def test_a_setting_for_memory_or_speed_does_not_decide(settings: dict[str, Any]) -> None:
    assert job_fingerprint(sft(changed(plan(), "sft", **settings))) == job_fingerprint(sft(plan()))


@pytest.mark.parametrize("mode", ["suggest", "apply"])
def test_the_tuner_does_not_decide(mode: str) -> None:
    tuned = plan(overrides=None)
    part = tuned.recipe.sft.model_copy(update={"tune": mode})
    tuned = tuned.model_copy(update={"recipe": tuned.recipe.model_copy(update={"sft": part})})
    assert sft(tuned).settings["tune"] == mode and "tune" not in sft(plan()).settings
    assert job_fingerprint(sft(tuned)) == job_fingerprint(sft(plan()))
    assert job_fingerprint(prepare(tuned)) == job_fingerprint(prepare(plan()))


def test_gpu_memory_of_the_rollout_does_not_decide() -> None:
    less = changed(plan(), "ppo", actor_rollout_ref__rollout__gpu_memory_utilization=0.5)
    jobs = [ppo(plan()), ppo(less)]
    assert jobs[0].settings != jobs[1].settings
    assert len({compute("ppo", job.settings) for job in jobs}) == 1


def test_a_runs_name_decides_nothing() -> None:
    assert job_fingerprint(sft(plan(run_name="one"))) == job_fingerprint(sft(plan(run_name="two")))


def test_each_stage_takes_the_result_of_the_previous_one() -> None:
    made = plan()
    behind = [sft_merge(made), ppo(made), merge(made), upload(made)]
    before = [sft(made), sft_merge(made), ppo(made), merge(made)]
    for job, source in zip(behind, before, strict=True):
        assert job.output and job.output.inputs[:1] == [source.directory]
    assert ray_cluster(made).output is None


def test_only_paths_that_other_runs_use_are_shared() -> None:
    made = plan()
    for job in (sft(made), sft_merge(made), merge(made)):
        assert job.output and not job.output.shared
        assert all(path.startswith(f"{made.directory}/") for path in job.output.outputs)
    assert prepare(made).output and not prepare(made).output.outputs  # type: ignore[union-attr]


def test_a_forced_stage_is_forced_in_its_first_attempt_only() -> None:
    made = plan(force_stages=["sft"])
    for job in (sft(made), sft_merge(made)):
        first, retry = (job_stage_request(job, is_first=is_first) for is_first in (True, False))
        assert first and first.force
        assert retry and not retry.force
    assert not merge(made).output.force  # type: ignore[union-attr]
