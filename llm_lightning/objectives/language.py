"""Figures that put a language model's loss in proportion."""

from __future__ import annotations

import math

import numpy as np


def unigram_entropy(targets: np.ndarray) -> float:
    """Entropy in nats of the frequencies of the targets: the loss of the best model that knows no context.

    H = -Σ p log p over the split's own targets.
    """
    counts = np.bincount(targets).astype(np.float64)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def perplexity(loss: float) -> float:
    """exp of the mean loss in nats."""
    return math.exp(min(loss, 700.0))


def bits_per_byte(loss_sum: float, size: int) -> float:
    """Bits needed for one byte of text, whatever the tokenizer: total loss in nats / (ln 2 · bytes)."""
    return loss_sum / (math.log(2) * max(size, 1))
