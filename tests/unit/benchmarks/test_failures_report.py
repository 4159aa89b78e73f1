"""The failures report covers every class, and accepts no wrong alert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.failures_report import alerts
from benchmarks.failures_report.alerts import Alert
from benchmarks.failures_report.cases import CASES
from llm_bridge.diagnosis.classes import CLASSES

CASE = next(case for case in CASES if case.name == "missing_path")
ALERT = Alert(
    "[llm-bridge] failures: missing_path failed: a file is missing",
    "failure",
    {"Class": "missing_path", "Evidence": "No such file or directory: '/no/such/train.parquet'"},
    mailed=True,
)


def test_every_class_has_a_case_and_no_two_cases_share_a_name() -> None:
    assert set(CLASSES) <= {case.kind for case in CASES}
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_one_alert_with_class_and_evidence_is_right() -> None:
    assert list(alerts.wrong(CASE, [ALERT])) == []


@pytest.mark.parametrize(
    "received",
    [
        [],
        [ALERT, ALERT],
        [replace(ALERT, occasion="retry")],
        [replace(ALERT, mailed=False)],
        [replace(ALERT, facts=ALERT.facts | {"Class": "unknown"})],
        [replace(ALERT, facts={"Class": "missing_path"})],
    ],
    ids=["none", "two", "another occasion", "no mail", "another class", "no evidence"],
)
def test_anything_else_is_not(received: list[Any]) -> None:
    assert list(alerts.wrong(CASE, received))
