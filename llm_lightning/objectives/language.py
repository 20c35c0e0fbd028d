"""Figures that put a language model's loss in proportion."""

from __future__ import annotations

import math

import numpy as np


def unigram_entropy(targets: np.ndarray) -> float:
    """Return the entropy in nats of the targets' frequencies: the loss of the best model without context.

    H = -Σ p log p over the split's own targets.
    """
    counts = np.bincount(targets).astype(np.float64)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def perplexity(loss: float) -> float:
    """Return exp of the mean loss in nats."""
    return math.exp(min(loss, 700.0))


def bits_per_byte(loss_sum: float, size: int) -> float:
    """Return the bits needed for one byte of text, with any tokenizer: total loss in nats / (ln 2 · bytes)."""
    return loss_sum / (math.log(2) * max(size, 1))
