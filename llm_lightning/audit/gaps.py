"""Differences between groups, with 95% intervals by the bootstrap over the sentences that were filled with the groups' terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_lightning.reporting.intervals import BOUNDS, DRAWS, Interval


@dataclass(frozen=True)
class Gap:
    """The largest difference between two groups."""

    high: int
    low: int
    """The groups with the highest and the lowest mean, by number."""
    value: float
    interval: Interval | None
    """Interval of the difference of these two groups. It may reach below zero: the two were chosen by their means."""


def find_largest_gap(values: np.ndarray) -> Gap:
    """Return the largest difference of the means of two groups; `values` are (sentences, groups).

    All groups have the same sentences, so that differences are taken within a sentence. They are those from the first group, in which a
    model that ignores the terms has zeros, and no rounding.
    """
    differences = values - values[:, :1]
    means = differences.mean(0)
    high, low = int(means.argmax()), int(means.argmin())
    pairs = differences[:, high] - differences[:, low]
    return Gap(high, low, float(means[high] - means[low]), bootstrap_mean(pairs))


def bootstrap_mean(values: np.ndarray) -> Interval | None:
    """Return the 95% interval of the mean of values, (examples,); None for fewer than two."""
    if len(values) < 2:
        return None
    low, high = np.quantile(draw_weights(len(values)) @ values, BOUNDS)
    return float(low), float(high)


def draw_weights(size: int, seed: int = 0) -> np.ndarray:
    """Return (draws, size): the share of each example in each draw with replacement. A call with the same arguments draws the same."""
    rng = np.random.default_rng(seed)
    weights: np.ndarray = rng.multinomial(size, np.full(size, 1 / size), DRAWS) / size
    return weights
