"""job_io.py: what a launcher leaves behind."""

from __future__ import annotations

from job_io import JobError

from llm_bridge.failures.kinds import KINDS


def test_a_reason_names_its_class_only_where_it_has_one() -> None:
    assert JobError("x").as_json() == {"reason": "x", "retry": False}
    told = JobError("x", retry=True, kind="missing_path").as_json()
    assert told == {"reason": "x", "retry": True, "kind": "missing_path"}


def test_the_classes_that_launchers_name_exist() -> None:
    import re
    from pathlib import Path

    jobs = Path(__file__).resolve().parents[2] / "include" / "jobs"
    named = {name for path in jobs.glob("*.py") for name in re.findall(r'kind="(\w+)"', path.read_text())}
    assert named and named <= set(KINDS)
