"""include/login/done.py: which result is there, and what an attempt may go on from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOGIN = Path(__file__).resolve().parents[2] / "include" / "login"


@pytest.fixture(scope="module")
def done() -> Iterator[Any]:
    """The helper, imported as on the login node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(LOGIN))
        import done

        yield done
    for name in ("done", "files"):
        sys.modules.pop(name, None)


class Stage:
    """A stage's directory, with attempts that really write files."""

    def __init__(self, done: Any, folder: Path, inputs: list[Path] | None = None) -> None:
        self.done, self.folder = done, folder
        self.inputs = inputs or []
        self.output = folder / "checkpoints"
        folder.mkdir()

    def asked(self, fingerprint: str = "a" * 64, force: bool = False) -> dict[str, Any]:
        paths = {"inputs": [str(path) for path in self.inputs], "outputs": [str(self.output)], "shared": []}
        return {"fingerprint": fingerprint, "force": force, **paths}

    def begin(self, number: int, **asked: Any) -> Any:
        return self.done.begin(str(self.folder / f"attempt-{number}"), self.asked(**asked))

    def end(self, number: int) -> None:
        """The attempt's job ends well, as batch.sh.j2 does it."""
        attempt = self.folder / f"attempt-{number}"
        self.output.mkdir(exist_ok=True)
        (self.output / "by").write_text(attempt.name)
        (attempt / "job_id").write_text(f"{number}\n")
        (self.folder / "done.json").write_text((attempt / "stage.json").read_text())

    def made_by(self, **asked: Any) -> str | None:
        found = self.done.finished(str(self.folder), self.asked(**asked))
        return found["job_id"] if found else None


@pytest.fixture
def sft(done: Any, tmp_path: Path) -> Stage:
    return Stage(done, tmp_path / "sft")


@pytest.fixture
def ppo(done: Any, sft: Stage, tmp_path: Path) -> Stage:
    return Stage(done, tmp_path / "ppo", [sft.folder])


def test_a_result_counts_from_its_jobs_good_end_on(sft: Stage) -> None:
    assert sft.made_by() is None
    sft.begin(1)
    assert sft.made_by() is None
    sft.end(1)
    assert sft.made_by() == "1"


def test_other_settings_want_another_result_and_nothing_of_the_old_one_is_used_or_deleted(sft: Stage) -> None:
    sft.begin(1)
    sft.end(1)
    assert sft.made_by(fingerprint="b" * 64) is None
    begun = sft.begin(2, fingerprint="b" * 64)
    aside = Path(f"{sft.output}.until-attempt-2")
    assert begun == {"goes_on": False, "aside": [str(aside)]}
    assert not sft.output.exists() and (aside / "by").read_text() == "attempt-1"
    assert sft.made_by() is None  # the first one's settings do not bring its result back


def test_a_retry_goes_on_with_what_the_failed_attempt_left(sft: Stage) -> None:
    sft.begin(1)
    sft.output.mkdir()
    assert sft.begin(2) == {"goes_on": True, "aside": []}
    assert sft.output.exists()


def test_what_lies_there_without_a_known_origin_is_not_gone_on_from(sft: Stage) -> None:
    sft.output.mkdir()
    assert sft.begin(1)["goes_on"] is False
    assert not sft.output.exists()


def test_an_output_that_is_gone_is_made_again(sft: Stage) -> None:
    sft.begin(1)
    sft.end(1)
    (sft.output / "by").unlink()
    sft.output.rmdir()
    assert sft.made_by() is None


@pytest.mark.parametrize("how", ["parameter", "file"])
def test_force_begins_anew_once_and_its_retry_goes_on(sft: Stage, how: str) -> None:
    sft.begin(1)
    sft.end(1)
    if how == "file":
        (sft.folder / "force").touch()
    force = how == "parameter"
    assert sft.made_by(force=force) is None
    assert sft.begin(2, force=force)["goes_on"] is False
    assert sft.begin(2, force=force)["aside"] == []  # the same attempt asked again: killed before sbatch
    sft.output.mkdir()
    assert sft.begin(3) == {"goes_on": True, "aside": []}
    sft.end(3)
    assert sft.made_by() == "3"


def test_an_input_that_was_made_anew_makes_the_stage_behind_it_begin_anew(sft: Stage, ppo: Stage) -> None:
    sft.begin(1)
    sft.end(1)
    ppo.begin(1)
    ppo.end(1)
    assert ppo.made_by() == "1"
    sft.begin(2, force=True)
    assert ppo.made_by() is None  # its input is not there just now
    sft.end(2)
    assert ppo.made_by() is None
    assert ppo.begin(2)["goes_on"] is False


def test_an_input_that_was_retried_to_its_end_is_the_same_input(sft: Stage, ppo: Stage) -> None:
    sft.begin(1)
    sft.begin(2)
    sft.end(2)
    ppo.begin(1)
    ppo.end(1)
    sft.begin(3)  # cleared by hand, although it was done: its job finds all steps trained
    sft.end(3)
    assert ppo.made_by() == "1"


def test_a_file_that_was_cut_off_is_no_result(sft: Stage) -> None:
    sft.begin(1)
    sft.end(1)
    text = (sft.folder / "done.json").read_text()
    (sft.folder / "done.json").write_text(text[: len(text) // 2])
    assert sft.made_by() is None
    with pytest.raises(ValueError):
        json.loads(text[: len(text) // 2])


def test_an_attempt_that_makes_two_results_names_both_by_what_goes_into_them(
    done: Any, sft: Stage, tmp_path: Path
) -> None:
    merge = Stage(done, sft.folder / "merge", [sft.folder])

    def begin(number: int) -> Any:
        also = {"name": "merge", "directory": str(merge.folder), **merge.asked()}
        return done.begin(str(sft.folder / f"attempt-{number}"), sft.asked() | {"also": [also]})

    begin(1)
    begin(2)
    sft.end(2)
    assert merge.made_by() is None
    part = sft.folder / "attempt-2" / "merge"
    merge.output.mkdir()
    (part / "job_id").write_text("2\n")
    (merge.folder / "done.json").write_text((part / "stage.json").read_text())
    assert (sft.made_by(), merge.made_by()) == ("2", "2")
    sft.begin(3, force=True)
    sft.end(3)
    assert merge.made_by() is None, "its input is another one"
