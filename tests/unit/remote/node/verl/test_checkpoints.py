"""checkpoints.py: complete checkpoints, and the step from which training resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.verl.checkpoints import (
    TRACKER,
    Layout,
    missing,
    prune,
    rewind,
    start_next_epoch_afresh,
    tracked_step,
)
from tests.unit.remote.node.support import ppo_checkpoint, sft_checkpoint

CONTENTS = ("model", "optimizer", "extra")
SFT = Layout.sft(2, CONTENTS, replicas=2)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_without_a_checkpoint_training_starts_afresh(tmp_path: Path) -> None:
    assert rewind(tmp_path, SFT) == 0
    assert tracked_step(tmp_path) is None


def test_training_resumes_from_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    sft_checkpoint(tmp_path, 5)
    sft_checkpoint(tmp_path, 10)
    assert rewind(tmp_path, SFT) == 10


@pytest.mark.parametrize(
    "name",
    [
        "model_world_size_2_rank_1.pt",
        "optim_world_size_2_rank_0.pt",
        "extra_state_world_size_2_rank_1.pt",
        "data_1.pt",
        "fsdp_config.json",
    ],
)
def test_a_checkpoint_that_lacks_a_file_is_passed_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft_checkpoint(tmp_path, 5)
    (sft_checkpoint(tmp_path, 10) / name).unlink()
    assert rewind(tmp_path, SFT) == 5
    assert tracked_step(tmp_path) == 5, "verl reads the tracker"
    assert "step 10 is incomplete" in capsys.readouterr().out


def test_a_file_that_was_cut_off_counts_as_missing(tmp_path: Path) -> None:
    sft_checkpoint(tmp_path, 5)
    cut_off(sft_checkpoint(tmp_path, 10) / "optim_world_size_2_rank_1.pt")
    assert rewind(tmp_path, SFT) == 5


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    sft_checkpoint(tmp_path, 10)
    sft_checkpoint(tmp_path, 9)
    assert rewind(tmp_path, SFT) == 10


def test_without_a_complete_checkpoint_verl_starts_from_zero(tmp_path: Path) -> None:
    (sft_checkpoint(tmp_path, 10) / "data_0.pt").unlink()
    assert rewind(tmp_path, SFT) == 0
    assert not (tmp_path / TRACKER).exists()


def test_a_tracker_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    sft_checkpoint(tmp_path, 5)
    (tmp_path / TRACKER).write_text("")
    assert rewind(tmp_path, SFT) == 5
    assert tracked_step(tmp_path) == 5


def test_another_number_of_processes_is_refused_with_both_numbers(tmp_path: Path) -> None:
    sft_checkpoint(tmp_path, 5, processes=4)
    with pytest.raises(JobError, match=r"written by 4 processes and this job has 2.*start a new run"):
        rewind(tmp_path, SFT)


@pytest.mark.parametrize("lost", ["data.pt", "critic/model_world_size_2_rank_0.pt", "actor/fsdp_config.json"])
def test_ppo_needs_actor_critic_and_the_place_in_the_data(lost: str, tmp_path: Path) -> None:
    layout = Layout.ppo(2, CONTENTS)
    assert layout.is_complete(ppo_checkpoint(tmp_path, 1))
    (ppo_checkpoint(tmp_path, 2) / lost).unlink()
    assert rewind(tmp_path, layout) == 1


def test_contents_that_were_not_to_be_saved_are_not_missed(tmp_path: Path) -> None:
    checkpoint = sft_checkpoint(tmp_path, 5)
    (checkpoint / "optim_world_size_2_rank_0.pt").unlink()
    assert missing(checkpoint, ["model", "extra", "hf_model"]) == []
    assert missing(checkpoint, CONTENTS) == ["optim_world_size_2_rank_0.pt"]


@pytest.mark.parametrize("lost", ["actor", "critic"])
def test_a_ppo_checkpoint_without_one_of_its_two_models_is_not_gone_on_from(
    tmp_path: Path, lost: str
) -> None:
    """What verl leaves of one where it keeps fewer of the one than of the other."""
    layout = Layout.ppo(2, CONTENTS)
    ppo_checkpoint(tmp_path, 1)
    shutil.rmtree(ppo_checkpoint(tmp_path, 2) / lost)
    assert rewind(tmp_path, layout) == 1


def test_a_ppo_without_a_critic_has_complete_checkpoints(tmp_path: Path) -> None:
    shutil.rmtree(ppo_checkpoint(tmp_path, 1) / "critic")
    assert rewind(tmp_path, Layout.ppo(2, CONTENTS)) == 1


def test_a_checkpoint_at_an_epochs_end_forgets_its_place_and_stays_complete(tmp_path: Path) -> None:
    checkpoint = sft_checkpoint(tmp_path, 4)
    start_next_epoch_afresh(checkpoint)
    assert not list(checkpoint.glob("data_?.pt"))
    assert rewind(tmp_path, SFT) == 4


def test_older_checkpoints_than_the_newest_complete_ones_are_deleted_whoever_saved_them(
    tmp_path: Path,
) -> None:
    for step in (5, 10, 15, 20):
        sft_checkpoint(tmp_path, step)
    (sft_checkpoint(tmp_path, 12) / "data_0.pt").unlink()
    (sft_checkpoint(tmp_path, 25) / "data_0.pt").unlink()
    assert sorted(prune(tmp_path, SFT, 2)) == [5, 10, 12]
    left = sorted(int(path.name.rpartition("_")[2]) for path in tmp_path.glob("global_step_*"))
    assert left == [15, 20, 25], "the incomplete one that is newer is verl's to overwrite"
    assert rewind(tmp_path, SFT) == 20


def test_what_verl_leaves_of_a_ppo_checkpoint_that_it_pruned_goes_too(tmp_path: Path) -> None:
    layout = Layout.ppo(2, CONTENTS)
    (tmp_path / "global_step_1").mkdir()
    (tmp_path / "global_step_1" / "data.pt").write_bytes(b"x")
    ppo_checkpoint(tmp_path, 2)
    assert prune(tmp_path, layout, 3) == [1]


def test_the_only_complete_checkpoint_is_never_deleted_and_without_a_number_none_is(tmp_path: Path) -> None:
    sft_checkpoint(tmp_path, 5)
    (sft_checkpoint(tmp_path, 10) / "data_0.pt").unlink()
    assert prune(tmp_path, SFT, 1) == [] and prune(tmp_path, SFT, None) == []
    assert rewind(tmp_path, SFT) == 5


@pytest.mark.parametrize(
    ("content", "complete"), [('{"r": 8, "lora_alpha": 16}', True), ("", False), ('{"r', False)]
)
def test_a_checkpoint_whose_scale_of_lora_was_cut_off_is_incomplete(
    tmp_path: Path, content: str, complete: bool
) -> None:
    checkpoint = sft_checkpoint(tmp_path, 5)
    (checkpoint / "lora_train_meta.json").write_text(content)
    assert missing(checkpoint, ["model"]) == ([] if complete else ["lora_train_meta.json"])
