"""Confidence intervals of mean scores and of paired differences, by the bootstrap over prompts.

Answers to one prompt depend on each other, so prompts are drawn and not answers; and models are compared prompt by
prompt, which removes the prompts' different difficulties from the difference. Standard library only: a seed gives the
same interval with every version of numpy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

RESAMPLES = 2000
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean of independent values, with the percentile interval of the bootstrap.

    Args:
        values: One value per prompt.
        seed: The same seed and values give the same interval.
        resamples: Number of samples that are drawn with replacement.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values to estimate a mean from")
    generator = random.Random(seed)
    means = sorted(fmean(generator.choices(values, k=len(values))) for _ in range(resamples))
    tail = (1 - CONFIDENCE) / 2
    return Estimate(fmean(values), _quantile(means, tail), _quantile(means, 1 - tail))


def difference(
    left: Sequence[float], right: Sequence[float], seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Return the mean of ``left - right``, pair by pair, with its interval.

    Args:
        left: One value per prompt.
        right: The other model's, in the same order.
        seed: As of :func:`estimate`.
        resamples: As of :func:`estimate`.

    Raises:
        ValueError: The numbers of values differ, or are 0.
    """
    if len(left) != len(right):  # zip(strict=True) needs Python 3.10
        raise ValueError(f"{len(left)} and {len(right)} values are no pairs")
    return estimate([a - b for a, b in zip(left, right)], seed, resamples)  # noqa: B905


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, linear between two of them."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
