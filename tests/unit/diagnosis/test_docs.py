"""docs/troubleshooting.md follows from the tables."""

from __future__ import annotations

from llm_bridge.diagnosis.classes import CLASSES
from llm_bridge.diagnosis.docs import PATH, SECTIONS, page
from llm_bridge.diagnosis.signatures import TABLE


def test_the_committed_page_is_current() -> None:
    assert PATH.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_class_is_in_one_section_and_the_four_most_common_problems_come_first() -> None:
    named = [name for _, kinds in SECTIONS for name in kinds]
    assert sorted(named) == sorted(CLASSES)
    titles = [title for title, _ in SECTIONS]
    assert [
        word in title for word, title in zip(("NCCL", "Ray", "GPU memory", "Slurm"), titles, strict=False)
    ] == [True] * 4


def test_every_signature_is_shown() -> None:
    text = page()
    assert all(signature.excerpt[:60] in text for signature in TABLE)
