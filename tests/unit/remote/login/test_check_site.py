"""The helper `check_site`: workspace, and paths that settings name."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.login import check_site
from llm_bridge.remote.messages import ERROR, OK, WARNING, CheckAnswer, CheckRequest, Finding, decode, encode


def check(request: CheckRequest) -> dict[str, Finding]:
    answer: CheckAnswer = decode(CheckAnswer, check_site.main(encode(request)))
    return {finding.check: finding for finding in answer.findings}


def problems(request: CheckRequest) -> list[str]:
    return [finding.sentence for finding in check(request).values() if finding.result == ERROR]


def test_a_workspace_that_does_not_exist_is_created_for_its_user_only(tmp_path: Path) -> None:
    workspace = tmp_path / "work" / "space"
    found = check(CheckRequest(str(workspace), {}))
    assert list(found) == ["workspace", "file locks", "hard links", "atomic rename", "free space"]
    assert {finding.result for finding in found.values()} == {OK}
    assert workspace.stat().st_mode & 0o777 == 0o700 and not os.listdir(workspace)


def test_a_workspace_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [problem] = problems(CheckRequest(f"{tmp_path}/file/work", {}))
    assert problem.startswith(
        f"workspace: {tmp_path}/file/work cannot be created or written on the login node: Not a directory. Set it to "
    )


def test_each_path_that_cannot_be_read_is_a_problem_with_the_key_that_sets_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    paths = {str(tmp_path): "a", f"{tmp_path}/file": "b", f"{tmp_path}/none": "c", "/none": "d"}
    todo = "Correct the path, or its permissions"
    assert problems(CheckRequest(str(tmp_path), paths)) == [
        f"c: {tmp_path}/none cannot be read on the login node: No such file or directory. {todo}",
        f"d: /none cannot be read on the login node: No such file or directory. {todo}",
    ]


def test_an_environment_that_install_environment_has_built_is_named_with_its_hash(tmp_path: Path) -> None:
    environment = tmp_path / "llm-1a2b"
    environment.mkdir()
    (tmp_path / "llm").symlink_to("llm-1a2b")
    request = CheckRequest(str(tmp_path), {}, environment=f"{tmp_path}/llm")
    assert "environment hash" not in check(request)
    record = {"hash": "1a2b", "python": "3.11", "tool": "uv 1", "built": "2026-11-28T08:00:00Z"}
    (environment / "llm-bridge-environment.json").write_text(json.dumps(record))
    found = check(request)["environment hash"].detail
    assert found == f"environment 1a2b: {tmp_path}/llm, Python 3.11, built 2026-11-28T08:00:00Z"


def failing(code: int) -> Any:
    def call(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_workspace_without_locks_is_a_problem_that_names_the_mount_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(check_site.fcntl, "flock", failing(code))
    [problem] = problems(CheckRequest(str(tmp_path), {}))
    assert "Lustre with the option flock" in problem and "nolock" in problem and not os.listdir(tmp_path)


def test_a_workspace_without_hard_links_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_site.os, "link", failing(errno.EPERM))
    found = check(CheckRequest(str(tmp_path), {}))["hard links"]
    assert found.result == OK and "does not support hard links (Operation not permitted)" in found.detail


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_workspace_is_a_problem_although_an_empty_file_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(check_site.tempfile, "NamedTemporaryFile", lambda **_: full)
        (problem,) = problems(CheckRequest(str(tmp_path), {}))
    assert f"{tmp_path} cannot be created or written on the login node: No space left on device" in problem


def test_little_free_space_is_a_warning_with_the_setting(tmp_path: Path) -> None:
    found = check(CheckRequest(str(tmp_path), {}, min_free_gib=1e9))["free space"]
    assert found.result == WARNING and found.detail.startswith("workspace: ")
    assert "preflight.min_free_gib requires 1e+09 GiB" in found.detail and found.action.startswith(
        "free space"
    )


def test_a_workspace_in_which_a_rename_replaces_nothing_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_site.os, "rename", lambda new, old: None)
    [problem] = problems(CheckRequest(str(tmp_path), {}))
    assert "does not replace another one" in problem and not os.listdir(tmp_path)


@pytest.mark.parametrize(("blocks", "result"), [("10 20 30", OK), ("40* 20 30", WARNING)])
def test_a_quota_that_is_exceeded_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: str, result: str
) -> None:
    command = tmp_path / "quota"
    command.write_text(f"#!/bin/sh\necho 'Filesystem blocks quota limit'\necho '/home {blocks}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = check(CheckRequest(str(tmp_path / "w"), {}, quota=True))["quota"]
    assert found.result == result and f"/home {blocks}" in found.detail
