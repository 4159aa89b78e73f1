"""Length of a training, check of its result, and its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.verl import trainer_config
from llm_bridge.remote.node.verl.checkpoints import TRACKER
from tests.unit.remote.node.support import sft_settings


def test_training_is_complete_after_all_epochs_or_the_given_steps() -> None:
    assert trainer_config.expected_steps(29, 2, None) == 58
    assert trainer_config.expected_steps(29, 2, 40) == 40


def test_steps_beyond_the_last_epoch_are_refused_because_verl_would_not_save_the_last_one() -> None:
    with pytest.raises(JobError, match=r"total_training_steps=100 is out of reach.*end at step 58"):
        trainer_config.expected_steps(29, 2, 100)


def test_a_run_that_saved_its_last_step_succeeded(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("58")
    assert trainer_config.verify_result(tmp_path, 58) == {
        "step": 58,
        "expected_steps": 58,
        "checkpoint_dir": str(tmp_path),
    }


@pytest.mark.parametrize(
    ("tracker", "text"), [(None, "saved no checkpoint"), ("29", "newest checkpoint is of step 29")]
)
def test_a_run_that_ended_early_has_failed_even_if_verl_exits_with_0(
    tracker: str | None, text: str, tmp_path: Path
) -> None:
    if tracker:
        (tmp_path / TRACKER).write_text(tracker)
    with pytest.raises(JobError, match=rf"{text} and training is complete at step 58") as caught:
        trainer_config.verify_result(tmp_path, 58)
    assert caught.value.retry


def environment() -> dict[str, str]:
    return trainer_config.training_environment(sft_settings(), {}, Path("/a"))


KNOWN = [
    "data",
    "data.train_batch_size",
    "data.train_files",
    "optim",
    "optim.lr",
    "trainer",
    "trainer.save_freq",
]


@pytest.mark.parametrize(
    ("argument", "unknown"),
    [
        ("data.train_batch_size=1", []),
        ("optim={lr: 1}", []),
        ("+data.mine=1", []),
        ("++data.mine=1", []),
        ("hydra.run.dir=x", []),
        (
            "data.train_batchsize=1",
            ["data.train_batchsize (similar: data.train_batch_size, data.train_files)"],
        ),
        ("actor.optim.lr=1", ["actor.optim.lr (similar: optim.lr)"]),
        ("training.deeply.save_freq=1", ["training.deeply.save_freq (similar: trainer.save_freq)"]),
        ("zzz=a=b", ["zzz"]),
    ],
)
def test_a_key_that_verl_does_not_have_is_named_with_similar_ones(argument: str, unknown: list[str]) -> None:
    assert trainer_config.unknown_keys([argument], KNOWN) == unknown


def test_a_text_where_verl_needs_a_number_is_refused() -> None:
    config = {"data": {"train_batch_size": 8, "size": "many"}, "flag": True}
    trainer_config.check_numbers(config, "data.train_batch_size")
    for key in ("data.size", "flag"):
        with pytest.raises(JobError, match=rf"{key}=.* must be a whole number"):
            trainer_config.check_numbers(config, "data.train_batch_size", key)


@pytest.mark.parametrize("key", ["data.train_batch_size", "trainer.total_epochs"])
def test_a_batch_size_or_number_of_epochs_below_one_is_refused(key: str) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(JobError, match=f"{key}=0 must be 1 or more"):
        trainer_config.check_numbers({section: {name: 0}}, key)
    trainer_config.check_numbers({"trainer": {"save_freq": -1}}, "trainer.save_freq")


OWN = {
    "trainer": {"save_freq": -1, "val_before_train": True, "nested": {"lr": 1e-6}, "total_steps": None},
    "empty": {},
    "name": "x",
}


@pytest.mark.parametrize(
    ("trainer", "wrong"),
    [
        (3, "trainer=3 would replace a section of verl: set keys below it, such as trainer.nested"),
        (None, "trainer=None would replace a section of verl"),
        ({"nested": {"lr": "fast"}}, "trainer.nested.lr='fast' must be a number, as verl's own value 1e-06"),
        ({"nested": "x"}, "trainer.nested='x' would replace a section of verl: set keys below it, such as"),
        ({"save_freq": "often"}, "trainer.save_freq='often' must be a number, as verl's own value -1"),
        (
            {"val_before_train": "no!"},
            "trainer.val_before_train='no!' must be true or false, as verl's own value true",
        ),
    ],
)
def test_a_value_of_another_kind_than_verls_own_is_refused(trainer: Any, wrong: str) -> None:
    config = {**OWN, "trainer": {**OWN["trainer"], **trainer} if isinstance(trainer, dict) else trainer}
    (found,) = trainer_config.wrong_kinds(config, OWN)
    assert found.startswith(wrong)


@pytest.mark.parametrize(
    "trainer",
    [
        {"save_freq": "after_each_epoch", "val_before_train": 1, "total_steps": "x", "new": {"a": 1}},
        {"save_freq": "${data.x}", "val_before_train": None, "nested": "${other}"},
        {"nested": {"lr": 1}},
    ],
)
def test_values_that_verl_may_accept_pass(trainer: dict[str, Any]) -> None:
    config = {"empty": None, "name": 5, "trainer": {**OWN["trainer"], **trainer}}
    assert list(trainer_config.wrong_kinds(config, OWN)) == []


def test_verl_imports_our_hooks_beside_the_sites_own_modules() -> None:
    ours = ",".join(trainer_config.IMPORTED_BY_VERL)
    assert environment()["VERL_USE_EXTERNAL_MODULES"] == ours
    environ = {"VERL_USE_EXTERNAL_MODULES": "own", "PYTHONPATH": "/own"}
    added = trainer_config.training_environment(sft_settings(), environ, Path("/a"))
    assert added["VERL_USE_EXTERNAL_MODULES"] == f"own,{ours}"
    assert added["PYTHONPATH"].endswith(":/own")
