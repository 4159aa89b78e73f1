"""Names that are made from users' input."""

from __future__ import annotations

import re

import pytest

from llm_bridge.naming import job_key, slug

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
def test_a_slug_has_no_character_with_a_meaning_in_a_shell_or_path(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", slug(text))


def test_a_safe_name_is_not_changed() -> None:
    assert slug("post_training") == "post_training"


def test_texts_with_similar_slugs_are_distinguished() -> None:
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
