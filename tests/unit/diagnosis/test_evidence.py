"""Evidence: in lines that Airflow has already, and in the helper's answer."""

from __future__ import annotations

from llm_bridge.diagnosis.evidence import in_lines
from llm_bridge.diagnosis.signatures import BY_ID

HYDRA = BY_ID["hydra"].excerpt


def test_lines_that_airflow_has_already_are_searched_too() -> None:
    assert [match.id for match in in_lines(["fine", HYDRA])] == ["hydra"]
