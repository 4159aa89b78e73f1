"""The helper `stage_result`: which result exists, and what an attempt may resume from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Provenance, StageResult
from llm_bridge.remote.login import stage_result
from llm_bridge.remote.messages import StageRequest


class Stage:
    """A stage's directory, with attempts that really write files."""

    def __init__(self, folder: Path, inputs: list[Path] | None = None) -> None:
        self.folder = folder
        self.inputs = inputs or []
        self.output = folder / "checkpoints"
        folder.mkdir()

    def request(self, fingerprint: str = "a" * 64, force: bool = False) -> StageRequest:
        inputs = [str(path) for path in self.inputs]
        return StageRequest(fingerprint, inputs, outputs=[str(self.output)], force=force)

    def start(self, number: int, **request: Any) -> list[str]:
        """Start an attempt; return what was archived."""
        return stage_result.start(str(self.attempt(number)), self.request(**request))

    def origin(self) -> str:
        """Return the attempt that began the current outputs."""
        provenance = attempt_dir.read_shape(Provenance, str(self.folder), attempt_dir.PROVENANCE)
        return str(provenance.attempt)

    def end(self, number: int) -> None:
        """Let the attempt's job succeed, as batch.sh.j2 does it."""
        attempt = self.attempt(number)
        self.output.mkdir(exist_ok=True)
        (self.output / "by").write_text(attempt.name)
        (attempt / attempt_dir.JOB_ID).write_text(f"{number}\n")
        (self.folder / attempt_dir.STAGE_RESULT).write_text(
            (attempt / attempt_dir.STAGE_MANIFEST).read_text()
        )

    def attempt(self, number: int) -> Path:
        return self.folder / attempt_dir.attempt_name(number)

    def made_by(self, **request: Any) -> str | None:
        found = stage_result.find(str(self.folder), self.request(**request))
        return found.job_id if found else None


@pytest.fixture
def sft(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "sft")


@pytest.fixture
def ppo(sft: Stage, tmp_path: Path) -> Stage:
    return Stage(tmp_path / "ppo", [sft.folder])


def test_a_result_exists_once_its_job_has_succeeded(sft: Stage) -> None:
    assert sft.made_by() is None
    sft.start(1)
    assert sft.made_by() is None
    sft.end(1)
    assert sft.made_by() == "1"


def test_a_result_comes_with_the_files_of_the_attempt_that_made_it(sft: Stage) -> None:
    sft.start(1)
    sft.end(1)
    attempt = sft.attempt(1)
    outcome = attempt_dir.Outcome(exit_code=0, ended=3.0)
    started = attempt_dir.Started(job_id="1", started=1.0, nodes="n1")
    attempt_dir.write_json(str(attempt / attempt_dir.OUTCOME), outcome)
    attempt_dir.write_json(str(attempt / attempt_dir.STARTED), started)
    attempt_dir.write_json(str(attempt / attempt_dir.RESULT), {"rows": 3})
    found = stage_result.find(str(sft.folder), sft.request())
    assert found == ("1", str(attempt), started, outcome, {"rows": 3})


def test_other_settings_need_another_result_and_the_old_outputs_are_archived_and_not_used(sft: Stage) -> None:
    sft.start(1)
    sft.end(1)
    other = "b" * 64
    assert sft.made_by(fingerprint=other) is None
    archived = sft.start(2, fingerprint=other)
    assert sft.origin() == "attempt-2"
    aside = Path(attempt_dir.archived(str(sft.output), "attempt-2"))
    assert archived == [str(aside)]
    assert not sft.output.exists() and (aside / "by").read_text() == "attempt-1"
    assert sft.made_by() is None  # the first one's settings do not bring its result back


def test_a_retry_resumes_from_the_outputs_of_the_failed_attempt(sft: Stage) -> None:
    sft.start(1)
    sft.output.mkdir()
    assert sft.start(2) == []
    assert sft.origin() == "attempt-1" and sft.output.exists()


def test_outputs_without_a_known_origin_are_not_resumed_from(sft: Stage) -> None:
    sft.output.mkdir()
    sft.start(1)
    assert sft.origin() == "attempt-1" and not sft.output.exists()


def test_an_output_that_is_missing_is_made_again(sft: Stage) -> None:
    sft.start(1)
    sft.end(1)
    (sft.output / "by").unlink()
    sft.output.rmdir()
    assert sft.made_by() is None


@pytest.mark.parametrize("how", ["parameter", "file"])
def test_force_starts_from_zero_once_and_its_retry_resumes(sft: Stage, how: str) -> None:
    sft.start(1)
    sft.end(1)
    if how == "file":
        (sft.folder / attempt_dir.FORCE_RERUN).touch()
    force = how == "parameter"
    assert sft.made_by(force=force) is None
    assert len(sft.start(2, force=force)) == 1 and sft.origin() == "attempt-2"
    # The same attempt again: the submitting process was killed before sbatch.
    assert sft.start(2, force=force) == []
    sft.output.mkdir()
    assert sft.start(3) == [] and sft.origin() == "attempt-2"
    sft.end(3)
    assert sft.made_by() == "3"


def test_a_stage_starts_from_zero_when_its_input_was_made_again(sft: Stage, ppo: Stage) -> None:
    sft.start(1)
    sft.end(1)
    ppo.start(1)
    ppo.end(1)
    assert ppo.made_by() == "1"
    sft.start(2, force=True)
    assert ppo.made_by() is None  # its input does not exist at this time
    sft.end(2)
    assert ppo.made_by() is None
    ppo.start(2)
    assert ppo.origin() == "attempt-2"


def test_prepared_data_with_other_rows_need_another_result(sft: Stage) -> None:
    data = sft.folder.with_name("data")
    data.mkdir()
    sft.start(1)
    sft.end(1)
    sft.inputs = [data]
    assert sft.made_by() == "1", "an earlier version prepared the data, and did not name them as an input"

    def prepared(rows: str) -> None:
        (data / attempt_dir.STAGE_RESULT).write_text(
            json.dumps({"fingerprint": rows, "inputs": {}, "id": rows, "attempt": ""})
        )

    prepared("hash 1")
    sft.start(2)
    sft.end(2)
    prepared("hash 1")
    assert sft.made_by() == "2"
    prepared("hash 2")
    assert sft.made_by() is None


def test_an_input_that_a_retry_completed_is_the_same_input(sft: Stage, ppo: Stage) -> None:
    sft.start(1)
    sft.start(2)
    sft.end(2)
    ppo.start(1)
    ppo.end(1)
    sft.start(3)  # cleared by hand after its success: its job finds all steps trained
    sft.end(3)
    assert ppo.made_by() == "1"


def test_a_truncated_file_is_no_result(sft: Stage) -> None:
    sft.start(1)
    sft.end(1)
    text = (sft.folder / attempt_dir.STAGE_RESULT).read_text()
    (sft.folder / attempt_dir.STAGE_RESULT).write_text(text[: len(text) // 2])
    assert sft.made_by() is None
    with pytest.raises(ValueError):
        json.loads(text[: len(text) // 2])


def test_each_of_two_results_of_one_attempt_is_identified_by_its_own_inputs(
    sft: Stage, tmp_path: Path
) -> None:
    merge = Stage(sft.folder / "merge", [sft.folder])

    def start(number: int) -> None:
        also = merge.request()._replace(name="merge", directory=str(merge.folder))
        stage_result.start(str(sft.attempt(number)), sft.request()._replace(also=[also]))

    start(1)
    start(2)
    sft.end(2)
    assert merge.made_by() is None
    part = sft.attempt(2) / "merge"
    merge.output.mkdir()
    (part / attempt_dir.JOB_ID).write_text("2\n")
    (merge.folder / attempt_dir.STAGE_RESULT).write_text((part / attempt_dir.STAGE_MANIFEST).read_text())
    assert (sft.made_by(), merge.made_by()) == ("2", "2")
    manifest = attempt_dir.read_shape(StageResult, str(merge.folder), attempt_dir.STAGE_RESULT)
    assert list(manifest.inputs) == [str(sft.folder)]
    sft.start(3, force=True)
    sft.end(3)
    assert merge.made_by() is None, "its input is another one"
