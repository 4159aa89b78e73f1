"""Ends of answers, and the choice of the engine; tests/verl/test_evaluate.py generates with a model."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from llm_bridge.remote.node.evaluate import generate


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([5, 6, 2, 0, 0], ([5, 6, 2], False)),
        ([5, 6, 7, 8], ([5, 6, 7, 8], True)),
        ([5, 6, 7, 2], ([5, 6, 7, 2], False)),
        ([3], ([3], False)),
        ([5, 6, 7, 8, 2], ([5, 6, 7, 8], True)),
    ],
)
def test_an_answer_ends_with_its_end_token_or_is_cut(ids: list[int], kept: Any) -> None:
    assert generate.until_end(ids, ends=[2, 3], limit=4) == kept


@pytest.mark.parametrize(
    ("device", "installed", "engine"),
    [("cuda", True, "vllm"), ("cuda", False, "transformers"), ("cpu", True, "transformers")],
)
def test_vllm_generates_where_it_is_installed_on_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, installed: bool, engine: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert generate.engine_for(device) == engine
