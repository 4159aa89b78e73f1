"""Batches of SFT that verl would refuse on the GPUs only."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.remote.node.verl import sft_rules
from llm_bridge.remote.node.verl.sft_rules import BATCH, DYNAMIC, MICRO, ULYSSES

FIXED = {DYNAMIC: False}


def found(verl: dict[str, Any], gpus: int = 16) -> list[str]:
    return list(sft_rules.problems(sft_rules.in_recipe(verl), gpus))


@pytest.mark.parametrize(
    ("verl", "gpus", "message"),
    [
        # On two H100s, verl refused these settings after 46 s.
        ({**FIXED, BATCH: 128, MICRO: 128}, 2, f"{MICRO}=128 does not divide the 64 rows of a process"),
        (
            {**FIXED, MICRO: 6},
            16,
            f"{BATCH}=256, divided among 16. Set it to 1, 2, 4, 8 or 16, or set {DYNAMIC}",
        ),
        ({**FIXED, "+" + MICRO: 6}, 16, f"{MICRO}=6 does not divide the 16 rows"),
        ({**FIXED, BATCH: 16 * 10**11, MICRO: 7}, 16, f"{MICRO}=7 does not divide the {10**11} rows"),
        ({**FIXED, MICRO: None}, 16, f"{MICRO}=None does not divide"),
        ({**FIXED, MICRO: 0}, 16, f"{MICRO}=0 does not divide"),
        (
            {**FIXED, BATCH: 16, MICRO: 2},
            16,
            "the 1 rows of a process: data.train_batch_size=16, divided among 16. Set it to 1, or",
        ),
        ({**FIXED, MICRO: 64, ULYSSES: 2}, 16, f"{MICRO}=64 does not divide the 32 rows"),
        (
            {BATCH: 100},
            16,
            f"{BATCH}=100 is not a multiple of the 16 processes that share it: set it to 96 or 112",
        ),
        ({BATCH: 8}, 16, "set it to 16"),
    ],
)
def test_batches_that_cannot_be_divided_are_refused_with_valid_values(
    verl: dict[str, Any], gpus: int, message: str
) -> None:
    (problem,) = found(verl, gpus)
    assert message in problem


@pytest.mark.parametrize(
    "verl",
    [
        {},
        {**FIXED, MICRO: 16},
        {**FIXED, MICRO: 32, ULYSSES: 2},
        # Packed by tokens.
        {MICRO: 6},
        # Known when verl's configuration is composed.
        {**FIXED, MICRO: "${data.n}"},
        {BATCH: "${data.n}"},
        {**FIXED, MICRO: 6, "engine.strategy": "megatron"},
    ],
)
def test_batches_that_verl_can_divide_or_that_cannot_be_known_pass(verl: dict[str, Any]) -> None:
    assert found(verl) == []
