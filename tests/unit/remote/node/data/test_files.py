"""Files of a split, in data sets laid out as on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.data import files

GSM8K = [
    "README.md",
    *(f"{c}/{s}-00000-of-00001.parquet" for c in ("main", "socratic") for s in ("train", "test")),
]
README = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files: socratic/*
---
"""


@pytest.mark.parametrize("readme", ["", README])
def test_a_configuration_is_a_folder_or_what_the_readme_says(readme: str) -> None:
    assert files.choose(GSM8K, readme, "main", "test") == ["main/test-00000-of-00001.parquet"]


def test_of_several_configurations_one_must_be_named() -> None:
    with pytest.raises(ValueError, match="has several configurations: set config to one of main, socratic"):
        files.choose(GSM8K, README, None, "train")


@pytest.mark.parametrize(
    ("names", "split", "found"),
    [
        (["chat.jsonl"], "train", ["chat.jsonl"]),
        (["chat.jsonl"], "test", []),
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["data/train-0.parquet", "data/val-0.parquet", "x.csv"], "train", ["data/train-0.parquet"]),
        (["data/train/a.csv", "data/test/a.csv"], "test", ["data/test/a.csv"]),
        (["trainer.json", ".cache/train.json"], "train", ["trainer.json"]),
    ],
)
def test_a_split_is_found_by_the_names_of_files(names: list[str], split: str, found: list[str]) -> None:
    assert files.choose(names, "", None, split) == found


def test_a_path_without_files_and_a_missing_split_are_errors(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is no file on this node"):
        files.matching(str(tmp_path / "*.jsonl"))
    with pytest.raises(JobError, match=r"a/b has no split dev; its data files: x\.csv"):
        raise files.no_split("a/b", "dev", ["x.csv", "README.md"])
