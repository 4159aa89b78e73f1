"""Stage sft: the command and the allocation; nothing here runs verl."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.stages import sft
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
