"""Hydra overrides, and what cannot be one; tests/verl has hydra read them."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.remote.node.verl.hydra_args import override, overrides


def test_the_order_is_kept_because_the_last_one_wins() -> None:
    assert overrides({"b.c": 1, "+a": "x"}) == ["b.c=1", "+a='x'"]


@pytest.mark.parametrize("key", ["", "a b", "a=b", "a.", "-x", "a'b", "hydra/job", "~a", "a\nb"])
def test_a_key_that_hydra_would_read_as_something_else_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="not a verl key"):
        override(key, 1)


@pytest.mark.parametrize(("value", "why"), [("???", "missing"), ({"a b": 1}, "dict key"), ({1}, "a set")])
def test_a_value_that_hydra_cannot_carry_is_refused_with_its_key(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.b: .*{why}"):
        override("a.b", value)
