"""docs/operators-reference.md follows from the docstrings of the public names."""

from __future__ import annotations

import pytest

import llm_bridge
from llm_bridge.commands import operators_reference as docs


def test_the_committed_page_is_current() -> None:
    assert docs.PATH.read_text(encoding="utf-8") == docs.page(), "run `make docs`"


def test_every_public_name_has_a_heading_and_its_arguments() -> None:
    text = docs.page()
    assert all(f"### `{name}" in text for name in llm_bridge.__all__ if name != "__version__")
    assert "| `gpus_per_node` | Number of GPUs on each node. |" in text
    assert ":class:" not in text and "``" not in text.replace("```", "")


def test_a_public_name_without_a_group_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_bridge, "__all__", [*llm_bridge.__all__, "NewOperator"])
    with pytest.raises(ValueError, match=r"without a group .*: NewOperator"):
        docs.page()
