"""Stage sft: the command and the allocation; nothing here runs verl."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.stages import sft
from llm_bridge.remote.node.verl import tuner
from tests.unit.remote.node.support import sft_settings


def test_the_stages_settings_become_verls_arguments() -> None:
    settings = sft_settings(
        logger=["console", "wandb"], experiment_name="it's", verl={"optim.lr": 1e-6, "+a.b": None}
    )
    assert sft.arguments(settings, nodes=2, gpus_per_node=8) == [
        "model.path='/m'",
        "data.train_files='/d/train.parquet'",
        "data.val_files='/d/test.parquet'",
        "trainer.default_local_dir='/c'",
        "trainer.device='cuda'",
        "trainer.nnodes=2",
        "trainer.n_gpus_per_node=8",
        "trainer.logger=['console','wandb','file']",
        "trainer.project_name='p'",
        "trainer.experiment_name='it\\'s'",
        "trainer.resume_mode='auto'",
        "optim.lr=1e-06",
        "+a.b=null",
    ]


def test_the_recipe_may_turn_resuming_off() -> None:
    arguments = sft.arguments(sft_settings(verl={"trainer.resume_mode": "disable"}), 1, 1)
    assert [a for a in arguments if "resume" in a] == ["trainer.resume_mode='disable'"]


def test_verl_gets_the_number_of_checkpoints_to_keep_and_the_recipes_number_wins() -> None:
    def kept(**settings: Any) -> list[str]:
        return [a for a in sft.arguments(sft_settings(**settings), 1, 1) if "to_keep" in a]

    assert kept(keep=3) == ["trainer.max_ckpt_to_keep=3"]
    assert kept(keep=3, verl={"trainer.max_ckpt_to_keep": 5}) == ["trainer.max_ckpt_to_keep=5"]
    assert kept(keep=None) == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}, (2, 8)),
        ({"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "h100:4"}, (1, 4)),
        ({"SLURM_JOB_NUM_NODES": "3", "CUDA_VISIBLE_DEVICES": "0,1"}, (3, 2)),
    ],
)
def test_nodes_and_gpus_come_from_what_slurm_gave(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert sft.allocation(environ) == expected


def test_a_job_without_gpus_is_refused_with_the_setting_that_requests_them() -> None:
    with pytest.raises(JobError, match=r"no GPU.*gpus_per_node"):
        sft.allocation({"SLURM_JOB_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": ""})


def test_outside_slurm_the_error_names_the_template_that_starts_it() -> None:
    with pytest.raises(JobError, match=r"inside a Slurm job, started by sft_step\.sh\.j2"):
        sft.allocation({})


@pytest.mark.parametrize(
    ("rows", "batch", "replicas", "steps"), [(7473, 256, 16, 29), (64, 16, 2, 4), (65, 16, 2, 4)]
)
def test_an_epoch_has_the_steps_that_verl_makes_of_it(
    rows: int, batch: int, replicas: int, steps: int
) -> None:
    assert sft.steps_per_epoch(rows, batch, replicas) == steps


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(JobError, match=r"train_batch_size=20 is not a multiple of the 16 processes"):
        sft.steps_per_epoch(1000, 20, 16)


def test_data_that_do_not_fill_a_batch_are_refused() -> None:
    with pytest.raises(JobError, match=r"10 rows .* do not fill one batch: data\.train_batch_size=16"):
        sft.steps_per_epoch(10, 16, 2)


def test_every_node_runs_the_same_torchrun_that_meets_at_the_first_node() -> None:
    command = sft.torchrun(2, 8, ["a=1"], {"SLURM_JOB_ID": "123", "RENDEZVOUS_HOST": "gpu94"})
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=gpu94:10123", "--rdzv-id=123-0"} <= set(
        command
    )
    option, module, argument = command[-3:]
    assert (option, argument) == ("--module", "a=1") and importlib.util.find_spec(module)


def test_a_requeued_job_does_not_meet_its_first_life() -> None:
    environ = {"SLURM_JOB_ID": "123", "RENDEZVOUS_HOST": "n", "SLURM_RESTART_COUNT": "1"}
    assert "--rdzv-id=123-1" in sft.torchrun(1, 1, [], environ)


FASTER = {"text": "1 now, 2 with: x", "settings": {"data.micro_batch_size_per_gpu": 32}}
TRAINING: Any = SimpleNamespace(arguments=[], config=None)


def tuning_of(tmp_path: Path, mode: str, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings and the report of an attempt, with a stand-in for the tuner, which needs GPUs and verl."""
    monkeypatch.setattr(tuner, "tuned", lambda *_: report)
    settings = sft_settings(tune=mode, checkpoint_dir=str(tmp_path))
    return sft.tuning_of(settings, TRAINING, 1, 1)


def test_without_the_key_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "tuned", lambda *_: pytest.fail("the tuner ran"))
    assert sft.tuning_of(sft_settings(), TRAINING, 1, 1) == ({}, {})


def test_a_suggestion_is_logged_and_not_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuning_of(tmp_path, "suggest", FASTER, monkeypatch) == ({}, FASTER)
    assert "tuning: 1 now, 2 with: x" in capsys.readouterr().out
    assert not (tmp_path / attempt_dir.TUNED).exists()


def test_a_resumed_training_keeps_the_settings_of_its_first_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuning_of(tmp_path, "apply", FASTER, monkeypatch) == (FASTER["settings"], FASTER)
    other = {"text": "", "settings": {"data.micro_batch_size_per_gpu": 64}}
    assert tuning_of(tmp_path, "apply", other, monkeypatch) == (FASTER["settings"], FASTER)
    assert tuning_of(tmp_path, "off", other, monkeypatch) == ({}, {})


def test_other_nodes_leave_the_file_to_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert tuning_of(tmp_path, "apply", FASTER, monkeypatch)[0] == FASTER["settings"]
    assert not (tmp_path / attempt_dir.TUNED).exists()


def test_the_tuner_does_not_meet_a_node_that_trains_already() -> None:
    environ = {"SLURM_JOB_ID": "123", "RENDEZVOUS_HOST": "n"}
    command = sft.torchrun(2, 8, [], environ, tuner.MODULE, restarts=4)
    assert {"--rdzv-endpoint=n:11123", "--max-restarts=4"} <= set(command)
    assert command[-1] == tuner.MODULE and importlib.util.find_spec(command[-1])
    assert "--max-restarts=0" in sft.torchrun(2, 8, [], environ)
