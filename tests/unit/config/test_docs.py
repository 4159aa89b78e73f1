"""docs/reference.md follows from the models of cluster files and recipes."""

from __future__ import annotations

import re

import pytest

from llm_bridge.config.descriptions import descriptions
from llm_bridge.config.docs import PATH, page
from llm_bridge.config.types import FrozenModel


def test_the_committed_page_is_current() -> None:
    assert PATH.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_link_to_other_keys_leads_to_a_heading() -> None:
    text = page()
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = set(re.findall(r"\(#([^)]*)\)", text))
    assert links and links <= anchors


def test_a_key_without_a_description_is_an_error() -> None:
    class Part(FrozenModel):
        """Part of a file.

        Attributes:
            known: Its description,
                on two lines.
        """

        known: int = 1

    class More(Part):
        """The same with one more."""

        bare: int = 2

    assert descriptions(Part) == {"known": "Its description, on two lines."}
    with pytest.raises(ValueError, match="More describes none of bare"):
        descriptions(More)
