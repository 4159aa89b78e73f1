"""The helper `check_site`: workspace, and paths that settings name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.login import check_site
from llm_bridge.remote.messages import CheckAnswer, CheckRequest, decode, encode


def check(request: CheckRequest) -> CheckAnswer:
    answer: CheckAnswer = decode(CheckAnswer, check_site.main(encode(request)))
    return answer


def test_a_workspace_that_does_not_exist_is_created_for_its_user_only(tmp_path: Path) -> None:
    workspace = tmp_path / "work" / "space"
    assert check(CheckRequest(str(workspace), {})) == ([], [])
    assert workspace.stat().st_mode & 0o777 == 0o700 and not os.listdir(workspace)


def test_a_workspace_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [problem] = check(CheckRequest(f"{tmp_path}/file/work", {})).problems
    assert problem.startswith(
        f"workspace: {tmp_path}/file/work cannot be created or written on the login node: Not a directory. Set it to "
    )


def test_each_path_that_cannot_be_read_is_a_problem_with_the_key_that_sets_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    paths = {str(tmp_path): "a", f"{tmp_path}/file": "b", f"{tmp_path}/none": "c", "/none": "d"}
    assert check(CheckRequest(str(tmp_path), paths)).problems == [
        f"c: {tmp_path}/none cannot be read on the login node: No such file or directory",
        "d: /none cannot be read on the login node: No such file or directory",
    ]


def failing(code: int) -> Any:
    def call(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_workspace_without_locks_is_a_problem_that_names_the_mount_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(check_site.fcntl, "flock", failing(code))
    [problem] = check(CheckRequest(str(tmp_path), {})).problems
    assert "Lustre with the option flock" in problem and "nolock" in problem and not os.listdir(tmp_path)


def test_a_workspace_without_hard_links_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_site.os, "link", failing(errno.EPERM))
    problems, notes = check(CheckRequest(str(tmp_path), {}))
    assert not problems and "does not support hard links (Operation not permitted)" in notes[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_workspace_is_a_problem_although_an_empty_file_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(check_site.tempfile, "NamedTemporaryFile", lambda **_: full)
        (problem,) = check(CheckRequest(str(tmp_path), {})).problems
    assert f"{tmp_path} cannot be created or written on the login node: No space left on device" in problem
