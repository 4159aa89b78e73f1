"""Names that are made from what users type."""

from __future__ import annotations

import re

import pytest

from llm_bridge.keys import job_key, slug

NASTY = [
    "a b",
    "$(reboot)",
    "x\ny",
    "モデル",
    "'; rm -rf /",
    "manual__2026-11-22T22:39:24+00:00",
    "../..",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_slug_holds_nothing_that_a_shell_or_a_path_could_misread(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", slug(text))


def test_a_name_that_is_safe_stays_as_it_is() -> None:
    assert slug("post_training") == "post_training"


def test_texts_that_would_look_alike_stay_apart() -> None:
    assert slug("a b") != slug("a-b") != slug("a:b")
    assert slug("x" * 100) != slug("x" * 101)
    assert len(slug("x" * 100)) <= 60


def test_the_key_is_the_same_for_the_same_attempt_and_different_for_any_other() -> None:
    base = ("dag", "run", "task", -1, 1)
    others = [
        ("dag2", *base[1:]),
        ("dag", "run2", *base[2:]),
        ("dag", "run", "t", -1, 1),
        (*base[:3], 0, 1),
        (*base[:4], 2),
    ]
    assert job_key(*base) == job_key(*base)
    assert len({job_key(*values) for values in [base, *others]}) == 6
