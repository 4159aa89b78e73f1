"""Files that a program leaves for Airflow's side."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from llm_bridge.diagnosis.classes import CLASSES
from llm_bridge.diagnosis.rules import GUARD
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Reason, as_json
from llm_bridge.remote.node.common import job_io
from llm_bridge.remote.node.common.job_io import JobError, run


def test_a_reason_names_its_class_only_where_it_has_one() -> None:
    assert JobError("x").as_reason() == Reason("x", retry=False, kind=None)
    reason = JobError("x", retry=True, kind="missing_path").as_reason()
    assert as_json(reason) == {"reason": "x", "retry": True, "kind": "missing_path", "nodes": ()}


def test_the_classes_that_programs_name_exist() -> None:
    node = Path(job_io.__file__).parents[1]
    named = {name for path in node.rglob("*.py") for name in re.findall(r'kind="(\w+)"', path.read_text())}
    assert named and named <= {*CLASSES, *GUARD}


def test_a_program_without_readable_settings_ends_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["sft"])
    with pytest.raises(SystemExit, match=r"usage: python node.pyz sft ATTEMPT_DIR/settings.json"):
        run(lambda settings: None)
    monkeypatch.setattr(sys, "argv", ["sft", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit, match=r"cannot read the settings .*none.json"):
        run(lambda settings: None)


def test_a_long_result_is_whole_in_its_file_and_cut_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / attempt_dir.SETTINGS
    settings.write_text("{}")
    monkeypatch.setattr(sys, "argv", ["x", str(settings)])
    run(lambda _: {"text": "a" * 10_000})
    assert len(attempt_dir.read_json(str(tmp_path / attempt_dir.RESULT))["text"]) == 10_000
    log = capsys.readouterr().out
    assert len(log) < 5000 and log.endswith(f"a ... (10012 characters: {attempt_dir.RESULT})\n")
