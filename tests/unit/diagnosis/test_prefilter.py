"""Literal texts of the signatures, by which most lines are skipped before regular expressions search them."""

from __future__ import annotations

from llm_bridge.diagnosis.prefilter import words_of
from llm_bridge.diagnosis.signatures import TABLE


def test_every_excerpt_has_one_of_its_signatures_literals() -> None:
    """Lines without them are not searched."""
    for signature in TABLE:
        words = words_of(signature.seen)
        assert words and any(word in signature.excerpt for word in words), signature.id
