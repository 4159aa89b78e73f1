"""sft.py and verl_run.py: the command, the allocation and the goal; nothing here runs verl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sft
import verl_run
from checkpoints import TRACKER
from job_io import JobError

from tests.jobs.support import sft_settings


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
        "trainer.logger=['console','wandb']",
        "trainer.project_name='p'",
        "trainer.experiment_name='it\\'s'",
        "trainer.resume_mode='auto'",
        "optim.lr=1e-06",
        "+a.b=null",
    ]


def test_the_recipe_may_turn_resuming_off() -> None:
    arguments = sft.arguments(sft_settings(verl={"trainer.resume_mode": "disable"}), 1, 1)
    assert [a for a in arguments if "resume" in a] == ["trainer.resume_mode='disable'"]


def test_verl_is_told_how_many_checkpoints_to_keep_and_the_recipes_own_number_wins() -> None:
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


def test_a_job_without_gpus_is_told_where_to_ask_for_them() -> None:
    with pytest.raises(JobError, match=r"no GPU.*gpus_per_node"):
        sft.allocation({"SLURM_JOB_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": ""})


def test_outside_slurm_it_says_how_it_is_started() -> None:
    with pytest.raises(JobError, match=r"inside a Slurm job, started by sft\.sh\.j2"):
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


def test_every_jobs_port_lies_below_the_range_that_linux_hands_out() -> None:
    ports = {sft.rendezvous_port(job) for job in range(1, 200_000, 7)}
    assert min(ports) >= 20000 and max(ports) < 30000


def test_every_node_runs_the_same_torchrun_that_meets_at_the_first_node() -> None:
    command = sft.torchrun(2, 8, ["a=1"], {"SLURM_JOB_ID": "123", "RENDEZVOUS_HOST": "gpu94"})
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=gpu94:20123", "--rdzv-id=123-0"} <= set(
        command
    )
    program, argument = command[-2:]
    assert Path(program).name == "llm_bridge_sft.py" and Path(program).exists() and argument == "a=1"


def test_a_requeued_job_does_not_meet_its_first_life() -> None:
    environ = {"SLURM_JOB_ID": "123", "RENDEZVOUS_HOST": "n", "SLURM_RESTART_COUNT": "1"}
    assert "--rdzv-id=123-1" in sft.torchrun(1, 1, [], environ)


def test_the_goal_is_all_epochs_or_the_steps_that_were_asked_for() -> None:
    assert verl_run.expected_steps(29, 2, None) == 58
    assert verl_run.expected_steps(29, 2, 40) == 40


def test_steps_beyond_the_last_epoch_are_refused_because_verl_would_not_save_the_last_one() -> None:
    with pytest.raises(JobError, match=r"total_training_steps=100 is out of reach.*end at step 58"):
        verl_run.expected_steps(29, 2, 100)


def test_a_run_that_saved_its_last_step_succeeded(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("58")
    assert verl_run.judge(tmp_path, 58) == {"step": 58, "expected_steps": 58, "checkpoint_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("tracker", "text"), [(None, "saved no checkpoint"), ("29", "newest checkpoint is of step 29")]
)
def test_a_run_that_ended_early_failed_whatever_verl_said(
    tracker: str | None, text: str, tmp_path: Path
) -> None:
    if tracker:
        (tmp_path / TRACKER).write_text(tracker)
    with pytest.raises(JobError, match=rf"{text} and training is complete at step 58") as caught:
        verl_run.judge(tmp_path, 58)
    assert caught.value.retry


def environment(**changes: Any) -> dict[str, str]:
    settings = sft_settings(**{"logger": ["console", "wandb"], "wandb_entity": "team", **changes})
    return verl_run.training_environment(settings, {"WANDB_MODE": "online"})


def test_weights_and_biases_gets_the_teams_name() -> None:
    assert environment()["WANDB_ENTITY"] == "team"
    assert "WANDB_ENTITY" not in environment(logger=["console"])


def test_the_users_choice_of_wandb_mode_stands() -> None:
    assert "WANDB_MODE" not in environment()


def test_a_wandb_server_that_is_away_does_not_end_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"WANDB_API_KEY": "x", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    added = verl_run.training_environment(sft_settings(logger=["wandb"]), environ)
    assert added["WANDB_MODE"] == "offline"
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().out


def test_without_a_key_wandb_logs_offline_and_says_which_key_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = verl_run.training_environment(sft_settings(logger=["wandb"]), {"HOME": str(tmp_path)})
    assert added["WANDB_MODE"] == "offline"
    assert "wandb_conn_id" in capsys.readouterr().out
