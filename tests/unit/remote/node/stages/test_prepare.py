"""Directories of the stage prepare: complete or absent, and never overwritten; tests/verl runs the program."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.hub import download
from llm_bridge.remote.node.stages import prepare
from tests.unit.remote.node.support import torch_file


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "models" / "final"


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        sys, "argv", ["prepare", str(tmp_path / "run" / "prepare" / "attempt-1" / "settings.json")]
    )


def unfinished(final: Path, name: str = "unfinished") -> Path:
    folder = final.with_name(name)
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    return folder


def test_an_installed_directory_records_its_source(final: Path) -> None:
    prepare.install(unfinished(final), final, {"source": "a/b", "revision": "1"})
    assert json.loads((final / prepare.MARKER).read_text()) == {"source": "a/b", "revision": "1"}
    assert prepare.is_prepared(final, {"source": "a/b"}), "the revision is not compared"
    assert not final.with_name("unfinished").exists()


def test_the_slower_of_two_runs_with_the_same_source_removes_its_own_directory(final: Path) -> None:
    prepare.install(unfinished(final), final, {"source": "a/b"})
    second = unfinished(final, "second")
    prepare.install(second, final, {"source": "a/b"})
    assert not second.exists() and (final / "file").exists()
    with pytest.raises(JobError, match="its source is not the one of this run"):
        prepare.install(unfinished(final, "third"), final, {"source": "c/d"})


def test_a_directory_that_does_not_exist_or_is_empty_is_not_prepared(final: Path) -> None:
    assert not prepare.is_prepared(final, {"source": "a/b"})
    final.mkdir(parents=True)
    assert not prepare.is_prepared(final, {"source": "a/b"})


def test_a_directory_with_other_content_is_an_error(final: Path) -> None:
    prepare.install(unfinished(final), final, {"source": "a/b"})
    with pytest.raises(JobError, match=r"was made from .*a/b.*this run needs .*c/d"):
        prepare.is_prepared(final, {"source": "c/d"})
    own = unfinished(final, "own")
    with pytest.raises(JobError, match="was not made by llm-bridge"):
        prepare.is_prepared(own, {"source": "a/b"})


def model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text('{"x": 1}')
    torch_file(folder / "pytorch_model.bin")


def test_a_model_of_the_hub_is_downloaded_once(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def download_model(repo_id: str, directory: Path, by_hand: Path) -> str:
        calls.append(directory)
        model(directory)
        return "abc"

    monkeypatch.setattr(download, "download_model", download_model)
    settings = {"base_model": "a/b", "model_dir": str(final)}
    skipped: list[str] = []
    assert prepare.prepare_model(settings, skipped) == str(final) and not skipped
    assert json.loads((final / prepare.MARKER).read_text()) == {"source": "a/b", "revision": "abc"}
    assert prepare.prepare_model(settings, skipped) == str(final) and skipped == ["model"]
    assert len(calls) == 1 and calls[0] != final


def test_a_download_that_is_no_model_is_refused_and_not_installed(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download_model(repo_id: str, directory: Path, by_hand: Path) -> str:
        model(directory)
        (directory / "pytorch_model.bin").unlink()
        return "abc"

    monkeypatch.setattr(download, "download_model", download_model)
    with pytest.raises(JobError, match=r"a/b on the Hub is not a complete .*: the weights are missing"):
        prepare.prepare_model({"base_model": "a/b", "model_dir": str(final)}, [])
    assert not final.exists()


def test_a_run_that_was_overtaken_during_its_download_uses_the_other_runs_model(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(repo_id: str, directory: Path, by_hand: Path) -> str:
        prepare.install(unfinished(final, "other"), final, {"source": "a/b", "revision": "abc"})
        model(directory)
        return "abc"

    monkeypatch.setattr(download, "download_model", overtaken)
    assert prepare.prepare_model({"base_model": "a/b", "model_dir": str(final)}, []) == str(final)
    assert not list(final.parent.glob("*.unfinished*"))


def test_a_run_waits_for_another_one_that_downloads_the_same_model_and_uses_it(
    final: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "LOCK_SECONDS", 0.01)
    monkeypatch.setattr(download, "download_model", lambda *_: pytest.fail("downloaded twice"))
    code = """
import sys
from pathlib import Path
from llm_bridge.remote.node.stages import prepare
final = Path(sys.argv[1])
with prepare.turn(final):
    print("locked", flush=True)
    sys.stdin.readline()
    (final.parent / "new").mkdir(parents=True)
    prepare.install(final.parent / "new", final, {"source": "a/b", "revision": "abc"})
"""
    final.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-c", code, str(final)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        skipped: list[str] = []
        sleep, release = time.sleep, other.stdin.close

        def released(seconds: float) -> None:
            release()
            sleep(seconds)

        monkeypatch.setattr(prepare.time, "sleep", released)
        settings = {"base_model": "a/b", "model_dir": str(final)}
        assert prepare.prepare_model(settings, skipped) == str(final)
    assert skipped == ["model"] and other.returncode == 0
    assert f"another run downloads {final}" in capfd.readouterr().out


def test_a_model_is_downloaded_on_a_file_system_without_locks(
    final: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(prepare.fcntl, "flock", no_locks)
    monkeypatch.setattr(download, "download_model", lambda _, directory, __: model(directory) or "abc")
    assert prepare.prepare_model({"base_model": "a/b", "model_dir": str(final)}, []) == str(final)
    assert "cannot be locked (No locks available)" in capfd.readouterr().out


def test_a_model_is_downloaded_beside_a_lock_that_cannot_be_opened(
    final: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lock file may be another user's; a directory stands for it, since root may open any file."""
    (final.parent / f".{final.name}.lock").mkdir(parents=True)
    monkeypatch.setattr(download, "download_model", lambda _, directory, __: model(directory) or "abc")
    assert prepare.prepare_model({"base_model": "a/b", "model_dir": str(final)}, []) == str(final)
    assert "cannot be locked (Is a directory)" in capfd.readouterr().out


def test_runs_download_into_places_of_their_own_and_a_retry_into_that_of_its_run(
    final: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places: list[Path] = []

    def interrupted(repo_id: str, directory: Path, by_hand: Path) -> str:
        places.append(directory)
        raise JobError("interrupted", retry=True)

    monkeypatch.setattr(download, "download_model", interrupted)
    for attempt in ("a/prepare/attempt-1", "a/prepare/attempt-2", "b/prepare/attempt-1"):
        monkeypatch.setattr(sys, "argv", ["prepare", str(tmp_path / attempt / "settings.json")])
        with pytest.raises(JobError, match="interrupted"):
            prepare.prepare_model({"base_model": "a/b", "model_dir": str(final)}, [])
    assert places[0] == places[1] != places[2]


def test_a_base_model_at_an_absolute_path_is_checked_and_used_there(final: Path) -> None:
    settings: dict[str, Any] = {"base_model": str(final), "model_dir": "/unused"}
    with pytest.raises(JobError, match="No such file or directory"):
        prepare.prepare_model(settings, [])
    model(final)
    assert prepare.prepare_model(settings, []) == str(final)
    (final / "tokenizer.json").unlink()
    with pytest.raises(JobError, match="is not a complete Hugging Face model: the tokenizer is missing"):
        prepare.prepare_model(settings, [])


def test_a_setting_that_verl_refuses_is_found_before_the_model_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(settings: dict[str, Any], *size: int) -> None:
        raise JobError("verl has no setting data.nope")

    monkeypatch.setattr(prepare.sft, "check", lambda *_: None)
    monkeypatch.setattr(prepare.ppo, "check_steps", refuse)
    monkeypatch.setattr(prepare, "prepare_data", lambda *_: None)
    monkeypatch.setattr(prepare, "prepare_model", lambda *_: pytest.fail("downloaded"))
    trainings = {"sft": {"nodes": 2, "gpus_per_node": 1}, "ppo": {}}
    with pytest.raises(JobError, match=r"ppo\.verl: verl has no setting data\.nope") as raised:
        prepare.prepare({"data": [], "trainings": trainings})
    assert raised.value.kind == "bad_config"


def test_what_the_evaluation_cannot_do_is_known_before_the_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.check_evaluation({})
    wanted = {"test_file": "/w/t", "rows": 500, "harness": ["hellaswag"]}
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(prepare.rows, "with_prompts", lambda settings: ([{}, {}], [[1], [1, 2]]))
    prepare.check_evaluation({"evaluation": wanted})
    log = capsys.readouterr().out
    assert "2 rows of /w/t (evaluate.rows: 500), prompts of at most 2 tokens" in log
    assert "so the evaluation will have no hellaswag" in log


def test_unfinished_downloads_that_no_run_resumes_are_removed(tmp_path: Path) -> None:
    folders = {name: tmp_path / f"{name}.unfinished.0a1b2c3d" for name in ("old", "locked", "written", "new")}
    long_ago = time.time() - 8 * 24 * 3600
    for name, folder in folders.items():
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "x.incomplete").write_text("x")
        if name != "new":
            for path in (folder / "part" / "x.incomplete", folder / "part", folder):
                os.utime(path, (long_ago, long_ago))
    os.utime(folders["written"] / "part" / "x.incomplete")
    with prepare.turn(tmp_path / "locked"):
        prepare.remove_abandoned(tmp_path)
    assert [name for name, folder in folders.items() if folder.exists()] == ["locked", "written", "new"]
