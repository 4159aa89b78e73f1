"""Intervals by the bootstrap, against those of the normal approximation."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import pytest

from llm_bridge.remote.node.evaluate.statistics import Estimate, difference, estimate


def scores(share: float, rows: int) -> list[float]:
    """Scores of which a share is 1 and the rest 0."""
    right = round(share * rows)
    return [1.0] * right + [0.0] * (rows - right)


@pytest.mark.parametrize(("share", "rows"), [(0.5, 400), (0.2, 1000), (0.9, 500)])
def test_the_interval_of_a_share_is_that_of_the_normal_approximation(share: float, rows: int) -> None:
    found = estimate(scores(share, rows), seed=0)
    half = 1.96 * math.sqrt(share * (1 - share) / rows)
    assert found.mean == pytest.approx(share)
    assert found.low == pytest.approx(share - half, abs=0.12 * half)
    assert found.high == pytest.approx(share + half, abs=0.12 * half)


def test_a_paired_difference_is_as_sure_as_the_differences_of_the_pairs_and_not_as_the_scores() -> None:
    generator = random.Random(1)
    difficulty = [generator.gauss(0, 10) for _ in range(300)]
    right = [value + generator.gauss(0, 1) for value in difficulty]
    left = [value + 0.5 + generator.gauss(0, 1) for value in difficulty]
    found = difference(left, right, seed=0)
    pairs = [a - b for a, b in zip(left, right, strict=True)]
    half = 1.96 * stdev(pairs) / math.sqrt(len(pairs))
    assert found.mean == pytest.approx(fmean(pairs))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.12 * half)
    assert found.low > 0, "unpaired, the difference would be lost in the difficulty of the prompts"


def test_a_seed_decides_the_interval() -> None:
    generator = random.Random(2)
    values = [generator.random() for _ in range(50)]
    assert estimate(values, seed=3) == estimate(values, seed=3) != estimate(values, seed=4)


def test_equal_values_have_an_interval_without_width() -> None:
    assert estimate([0.25] * 10, seed=0) == Estimate(0.25, 0.25, 0.25)
    assert difference([1.0, 0.0], [1.0, 0.0], seed=0) == Estimate(0.0, 0.0, 0.0)
    assert estimate([0.5], seed=0) == Estimate(0.5, 0.5, 0.5)


def test_about_95_of_100_intervals_contain_the_true_mean() -> None:
    generator = random.Random(5)
    hits = 0
    for seed in range(100):
        low, high = estimate([float(generator.random() < 0.4) for _ in range(60)], seed, 200)[1:]
        hits += low <= 0.4 <= high
    assert 85 <= hits <= 100


def test_nothing_and_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([], seed=0)
    with pytest.raises(ValueError, match="2 and 1 values are no pairs"):
        difference([1.0, 0.0], [1.0], seed=0)
