"""The classes of failures."""

from __future__ import annotations

from llm_bridge.diagnosis.classes import CLASSES, class_of


def test_every_class_has_a_title_a_reason_and_advice() -> None:
    for failure in CLASSES.values():
        assert failure.why and failure.advice and failure.title


def test_a_class_of_another_version_counts_as_unknown() -> None:
    assert class_of("of a later version") is CLASSES["unknown"]
