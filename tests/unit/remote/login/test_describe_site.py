"""The helper `describe_site`."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from llm_bridge.remote.login import describe_site
from llm_bridge.remote.messages import DescribeAnswer, DescribeRequest, decode, encode


def describe(*folders: str, files: tuple[str, ...] = ()) -> DescribeAnswer:
    answer: DescribeAnswer = decode(
        DescribeAnswer, describe_site.main(encode(DescribeRequest(folders, files)))
    )
    return answer


def test_folders_that_the_user_may_write_are_found_with_their_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    (tmp_path / "conda.sh").write_text("")
    found = describe("$SCRATCH", "$UNSET_HERE", "/nowhere", str(tmp_path), files=(f"{tmp_path}/*.sh",))
    [folder] = found.folders
    assert folder.path == str(tmp_path) and folder.free_gib > 0
    assert found.files == [f"{tmp_path}/conda.sh"]
    assert found.user == getpass.getuser() and found.shell.startswith("/")


def test_the_longest_mount_point_gives_the_kind_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    found = describe_site.folder(f"{tmp_path}/a", {"/": "ext4", str(tmp_path): "lustre"})
    assert found and found.kind == "lustre"


def test_names_of_cleared_variables_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(describe_site.CLEARED, "SBATCH_ACCOUNT SQUEUE_FORMAT")
    assert describe().cleared == ["SBATCH_ACCOUNT", "SQUEUE_FORMAT"]
