"""Stage merge up to where verl's merger starts; the merge itself runs in tests/verl/test_sft.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.stages import merge
from llm_bridge.remote.node.verl.checkpoints import TRACKER
from testing.weights import safetensors
from tests.unit.remote.node.support import ppo_checkpoint, sft_checkpoint


def model(directory: Path, weights: tuple[str, ...] = ("model.safetensors",)) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "tokenizer.json").write_text("{}")
    for name in weights:
        (directory / name).write_bytes(safetensors())
    return directory


def test_without_a_checkpoint_the_error_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=rf"no checkpoint to merge: {tmp_path}/{TRACKER} does not exist"):
        merge.newest(tmp_path, None)


def test_a_tracker_without_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("7")
    with pytest.raises(JobError, match=r"names step 7, but .*global_step_7/actor does not exist"):
        merge.newest(tmp_path, "actor")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sft_checkpoint(tmp_path, 5) / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(JobError, match=r"step 5 is incomplete, 1 file\(s\).*model_world_size_2_rank_1\.pt"):
        merge.newest(tmp_path, None)


def test_the_newest_checkpoint_is_taken_and_for_ppo_its_actor(tmp_path: Path) -> None:
    ppo_checkpoint(tmp_path, 5)
    ppo_checkpoint(tmp_path, 10)
    assert merge.newest(tmp_path, "actor") == (10, tmp_path / "global_step_10" / "actor")


def test_the_optimizers_shards_are_not_needed(tmp_path: Path) -> None:
    (sft_checkpoint(tmp_path, 5) / "optim_world_size_2_rank_1.pt").unlink()
    assert merge.newest(tmp_path, None)[0] == 5


def test_a_model_that_was_merged_from_this_checkpoint_is_kept(tmp_path: Path) -> None:
    checkpoint = sft_checkpoint(tmp_path, 5)
    output = model(tmp_path / "model")
    settings = {"checkpoint_dir": str(tmp_path), "component": None, "output_dir": str(output)}
    source = {**merge.source_of(checkpoint, 5), "trained_from": "/base"}
    (tmp_path / "model.source.json").write_text(json.dumps(source))
    result = merge.merge({**settings, "trained_from": "/base"})
    assert result == {"model_path": str(output), "step": 5, "skipped": True}


def test_a_checkpoint_that_was_written_again_is_another_source(tmp_path: Path) -> None:
    checkpoint = sft_checkpoint(tmp_path, 5)
    before = merge.source_of(checkpoint, 5)
    (checkpoint / "model_world_size_2_rank_0.pt").write_bytes(b"other")
    assert merge.source_of(checkpoint, 5) != before
