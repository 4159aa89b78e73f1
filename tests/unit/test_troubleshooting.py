"""docs/troubleshooting.md is what the tables say."""

from __future__ import annotations

from llm_bridge.failures.docs import PATH, SECTIONS, page
from llm_bridge.failures.kinds import KINDS
from llm_bridge.failures.signatures import TABLE


def test_the_committed_page_is_current() -> None:
    assert PATH.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_class_is_in_one_section_and_the_four_common_troubles_come_first() -> None:
    named = [name for _, kinds in SECTIONS for name in kinds]
    assert sorted(named) == sorted(KINDS)
    titles = [title for title, _ in SECTIONS]
    assert [
        word in title for word, title in zip(("NCCL", "Ray", "GPU memory", "Slurm"), titles, strict=False)
    ] == [True] * 4


def test_every_signature_is_shown() -> None:
    text = page()
    assert all(signature.excerpt[:60] in text for signature in TABLE)
