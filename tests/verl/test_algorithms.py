"""Algorithms of recipes, against the verl that is installed; nothing here trains."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.algorithm import ALGORITHMS, DEFAULT_RESPONSE_LENGTH
from llm_bridge.config.loader import load_recipe
from llm_bridge.config.recipe import Ppo
from llm_bridge.config.recipe_keys import KEYS
from llm_bridge.remote.node.verl import ppo_rules
from tests.unit.remote.node.support import ppo_settings
from tests.verl.support import attempt
from tests.verl.test_prepare import local, outcome

Launch = Callable[..., subprocess.CompletedProcess[str]]
REF_MICRO = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"

# Prints what verl says to each of the settings in standard input: importing it takes ten seconds.
COMPOSE = """
import json, sys
from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.stages import ppo, sft
from llm_bridge.remote.node.verl import ppo_rules, trainer_config, validate_ppo

answers = {}
given = json.load(sys.stdin)
for name, settings in given["settings"].items():
    try:
        config = ppo.compose(settings)[1]
        answers[name] = ["accepted", ppo_rules.needs_critic(trainer_config.lookup(config))]
        validate_ppo.validate(config)
    except JobError as error:
        answers[name] = ["refused", str(error)]
plain = trainer_config.lookup(trainer_config.load_config(ppo.CONFIG, []))
answers["defaults"] = {key: plain(key) for key in [*ppo_rules.DEFAULTS, "data.max_response_length"]}
for name, module in (("sft", sft), ("ppo", ppo)):
    config = trainer_config.load_config(module.CONFIG, [f"{key}=1" for key in given["keys"][name]])
    answers[f"keys of {name}"] = {key: trainer_config.lookup(config)(key) for key in given["keys"][name]}
print(json.dumps(answers))
"""
# Settings of verl that have a field in the trigger form: stage -> keys.
FIELDS = {
    stage: [key.verl[1] for key in KEYS.values() if key.verl and key.verl[0] == stage]
    for stage in ("sft", "ppo")
}


def settings_of(algorithm: str, **changes: Any) -> dict[str, Any]:
    """Settings of the program ppo with an algorithm on the tiny recipe's model."""
    own = {key: value for key, value in load_recipe("tiny_cpu").ppo.verl.items() if "critic." not in key}
    if algorithm == "ppo":
        own = load_recipe("tiny_cpu").ppo.verl
    verl = Ppo.model_validate({"algorithm": algorithm, "verl": {**own, REF_MICRO: 4, **changes}}).verl
    settings = ppo_settings(device="cpu", nodes=2, gpus_per_node=1, verl=verl)
    if algorithm != "ppo":
        del settings["critic_path"]
    return settings


WRONG = {
    "no such estimator": settings_of("ppo", **{"algorithm.adv_estimator": "grop"}),
    "no such loss": settings_of("grpo", **{"actor_rollout_ref.actor.policy_loss.loss_mode": "gsop"}),
    "no such aggregation": settings_of("grpo", **{"actor_rollout_ref.actor.loss_agg_mode": "mean"}),
    "no micro batch": settings_of("grpo", **{REF_MICRO: None}),
    "one answer": settings_of("grpo", **{"actor_rollout_ref.rollout.n": 1}),
}


@pytest.fixture(scope="module")
def answers(cluster_python: str, archive: Path) -> dict[str, Any]:
    """What verl says to every algorithm and to what is wrong; its defaults."""
    given = {**{name: settings_of(name) for name in ALGORITHMS}, **WRONG}
    given |= {name: {**settings_of("ppo"), "verl": load_recipe(name).ppo.verl} for name in ("tiny_grpo_cpu",)}
    environ = {**os.environ, "PYTHONPATH": str(archive), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [cluster_python, "-c", COMPOSE],
        input=json.dumps({"settings": given, "keys": FIELDS}),
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", [*ALGORITHMS, "tiny_grpo_cpu"])
def test_verl_accepts_every_algorithm_and_agrees_about_its_critic(answers: dict[str, Any], name: str) -> None:
    assert answers[name] == ["accepted", name == "ppo"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no such estimator", "algorithm.adv_estimator: verl refuses the settings: there is no estimator 'grop'"),
        ("no such loss", "policy_loss: verl refuses the settings: Unsupported loss mode: gsop"),
        ("no such aggregation", "Invalid loss_agg_mode: mean"),
        ("no micro batch", f"Please set at least one of {REF_MICRO.removesuffix('_per_gpu')!r}"),
        ("one answer", "compares the answers to one prompt"),
    ],
)  # fmt: skip
def test_what_verl_would_refuse_on_the_gpus_is_refused_with_its_own_text(
    answers: dict[str, Any], name: str, text: str
) -> None:
    verdict, reason = answers[name]
    assert verdict == "refused" and text in reason


def test_the_rules_know_verls_defaults(answers: dict[str, Any]) -> None:
    assert answers["defaults"] == {**ppo_rules.DEFAULTS, "data.max_response_length": DEFAULT_RESPONSE_LENGTH}


@pytest.mark.parametrize("stage", FIELDS)
def test_verl_has_every_key_that_has_a_field_in_the_form(answers: dict[str, Any], stage: str) -> None:
    # A key that verl does not have is refused: composing would have failed.
    assert answers[f"keys of {stage}"] == dict.fromkeys(FIELDS[stage], 1)


def test_prepare_names_the_stage_whose_settings_verl_refuses(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    wanted = local(tmp_path, assets)
    training = WRONG["no micro batch"] | {"train_files": f"{wanted['data'][0]['directory']}/train.parquet"}
    settings = attempt(tmp_path, "prepare", {**wanted, "trainings": {"ppo": training}})
    assert launch("prepare", settings).returncode == 1
    reason = outcome(settings, "reason")["reason"]
    assert reason.startswith(
        "ppo.verl: verl refuses the settings: [actor_rollout_ref.ref] Please set at least"
    )
