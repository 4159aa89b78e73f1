"""Helper old_runs: which runs there are, and the removal of some."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Owner, Provenance
from llm_bridge.remote.login import old_runs
from llm_bridge.remote.messages import OldRunsAnswer, OldRunsRequest, decode, encode


@pytest.fixture
def dag(tmp_path: Path) -> Path:
    (tmp_path / "nightly").mkdir()
    return tmp_path / "nightly"


def make(dag: Path, name: str, *, trained: bool = True, inputs: dict[str, Any] | None = None) -> Path:
    attempt = dag / name / "sft" / "attempt-1"
    owner = Owner(dag.name, name, "sft.train", -1, "llmb-x", "1")
    attempt_dir.write_json(str(attempt / attempt_dir.OWNER), owner)
    (dag / name / "sft" / "checkpoints").mkdir()
    (dag / name / "sft" / "checkpoints" / "shard.pt").write_bytes(bytes(100_000))
    provenance = Provenance("f", inputs or {}, "attempt-1")
    attempt_dir.write_json(str(dag / name / "sft" / attempt_dir.PROVENANCE), provenance)
    if trained:
        (dag / name / "sft" / attempt_dir.STAGE_RESULT).write_text("{}")
    return dag / name


def ask(dag: Path, remove: list[str] | None = None, seconds: float = 60.0) -> OldRunsAnswer:
    request = OldRunsRequest(str(dag.parent), str(dag), seconds, remove)
    answer: OldRunsAnswer = decode(OldRunsAnswer, old_runs.main(encode(request)))
    return answer


def test_the_runs_of_a_dag_are_listed_with_owner_and_use(dag: Path) -> None:
    make(dag, "one")
    make(dag, "two", trained=False, inputs={f"{dag}/one/sft/merge": "id", "/elsewhere/x/y/z": "id"})
    (dag / "notes").mkdir()
    (dag / ".removed-old-0").mkdir()
    answer = ask(dag)
    assert {run.name: (run.run_id, run.trained, run.is_used, run.is_active) for run in answer.runs} == {
        "one": ("one", True, True, False),
        "two": ("two", False, False, False),
    }
    assert answer.more, "an earlier request was ended in the middle"


def test_a_run_is_removed_with_all_its_files_and_no_other(dag: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (make(dag, "one") / "link").symlink_to(outside)
    (dag / "one" / "sft" / "file_link").symlink_to(outside / "kept")
    make(dag, "two")
    answer = ask(dag, ["one", "gone"])
    assert answer.removed == ["one"] and answer.freed >= 100_000 and not answer.more and not answer.problems
    assert os.listdir(dag) == ["two"] and (outside / "kept").exists()
    assert ask(dag, ["one"]) == OldRunsAnswer([], [], 0, False, [])


def test_what_could_not_be_deleted_in_time_is_no_run_any_more_and_is_deleted_later(
    dag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(dag, "one")

    def too_slow(*_: Any) -> None:
        raise old_runs.TooSlow

    with monkeypatch.context() as patched:
        patched.setattr(old_runs, "delete", too_slow)
        assert ask(dag, ["one"]).more
    assert os.listdir(dag) == [".removed-one-0"] and not ask(dag).runs
    make(dag, "one")  # the run was cleared meanwhile
    assert ask(dag, []).freed >= 100_000
    assert os.listdir(dag) == ["one"]


@pytest.mark.parametrize("name", ["../other", ".", "..", "a/b", "one/sft", ".removed-x"])
def test_nothing_outside_of_the_dags_directory_is_removed(dag: Path, name: str) -> None:
    make(dag, "one")
    make(dag.parent / "other", "run")
    before = sorted(dag.parent.rglob("*"))
    assert not ask(dag, [name]).removed
    assert sorted(dag.parent.rglob("*")) == before


def test_a_directory_that_is_none_of_the_workspaces_is_refused(dag: Path, tmp_path: Path) -> None:
    make(dag, "one")
    (tmp_path / "alias").mkdir()
    request = OldRunsRequest(str(tmp_path / "alias"), str(dag), 60.0, ["one"])
    answer = decode(OldRunsAnswer, old_runs.main(encode(request)))
    assert answer.problems == [f"{dag} is no directory of runs"] and (dag / "one").exists()


def test_a_link_to_a_run_and_a_directory_without_a_job_are_left_alone(dag: Path, tmp_path: Path) -> None:
    (dag / "alias").symlink_to(make(dag.parent / "other", "run"))
    (dag / "notes").mkdir()
    assert not ask(dag, ["alias", "notes"]).removed and (dag / "alias").exists() and (dag / "notes").exists()


def test_a_run_that_is_active_or_in_use_is_left_alone_even_if_it_is_named(dag: Path) -> None:
    beat = make(dag, "one") / "sft" / "attempt-1" / f"{attempt_dir.HEARTBEAT}1"
    beat.touch()
    make(dag, "two")
    make(dag, "three", inputs={f"{dag}/two/sft": "id"})
    answer = ask(dag, ["one", "two"])
    assert answer.removed == [] and answer.problems == ["one: a job is active", "two: in use"]
    os.utime(beat, (time.time() - 3600,) * 2)
    assert ask(dag, ["one"]).removed == ["one"]


@pytest.mark.parametrize("spelling", ["{}//nightly", "{}/./nightly", "{}-link/nightly"])
def test_a_run_in_use_is_found_however_the_workspace_is_written(dag: Path, spelling: str) -> None:
    workspace = str(dag.parent)
    Path(f"{workspace}-link").symlink_to(workspace)
    make(dag, "one")
    make(dag, "two", inputs={f"{workspace}/nightly/one/sft/merge": "id"})
    place = spelling.format(workspace)
    for request in (
        OldRunsRequest(workspace, place, 60.0, ["one"]),
        OldRunsRequest(place.rpartition("/")[0], str(dag), 60.0, ["one"]),
        OldRunsRequest(place.rpartition("/")[0], place, 60.0, ["one"]),
    ):
        answer = decode(OldRunsAnswer, old_runs.main(encode(request)))
        assert (answer.removed, answer.problems) == ([], ["one: in use"])
        listed = decode(OldRunsAnswer, old_runs.main(encode(request._replace(remove=None))))
        assert [run.is_used for run in listed.runs if run.name == "one"] == [True]
