"""Precision and recall at every threshold: average precision, curves, and the threshold with the best F1.

Up to SCORES scores are all stored and the figures are exact. More scores are counted in bins of equal width in log-odds, between
-16 and 16: scores of one bin count as equal. With up to 2,000 labels a bin is 1/128 wide, and average precision was within 0.001 of the
exact one (tests/metrics); with 100,000 labels there are 64 bins, of half a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_lightning.metrics.rows import Rows, Sample
from llm_lightning.metrics.state import State

SCORES = 1 << 24  # float32: 64 MiB over all ranks
CELLS = 1 << 24  # of a histogram, two for each label and bin; int64: 128 MiB on each rank
MOST_BINS = 1 << 12
RANGE = 16.0  # log-odds beyond which scores count as equal: a probability of 1e-7 from 0 or 1
CURVES = 50  # labels whose curves are stored, the most frequent ones
POINTS = 100  # of a curve, at most


@dataclass(frozen=True)
class Curve:
    """Counts at each threshold: how many examples reach it, and to how many of these examples the label applies."""

    thresholds: np.ndarray
    """(thresholds,), falling"""
    reached: np.ndarray
    """(thresholds,) int64"""
    right: np.ndarray
    """(thresholds,) int64"""

    @property
    def positives(self) -> int:
        return int(self.right[-1]) if len(self.right) else 0

    def average_precision(self) -> float:
        """Return Σ (recall gained at a threshold) · precision there; 0 if the label applies to no example."""
        precision = self.right / np.maximum(self.reached, 1)
        gained = np.diff(self.right, prepend=0)
        return float((gained * precision).sum() / max(self.positives, 1))

    def points(self) -> dict[str, list[float]]:
        """Return precision and recall at up to POINTS thresholds."""
        last = len(self.thresholds) - 1
        chosen = np.unique(np.linspace(0, last, min(POINTS, last + 1)).round().astype(int))
        reached, right = self.reached[chosen], self.right[chosen]
        return {"precision": (right / np.maximum(reached, 1)).tolist(), "recall": (right / max(self.positives, 1)).tolist()}

    def best(self) -> int:
        """Return the place of the threshold with the best F1, the highest threshold among equals."""
        return int(np.argmax(2 * self.right / np.maximum(self.reached + self.positives, 1)))


def exact_curve(scores: np.ndarray, applies: np.ndarray) -> Curve:
    """Return the curve of scores and of whether the label applies, both (examples,); equal scores reach a threshold together."""
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], np.cumsum(applies[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.empty(0, int)
    return Curve(ranked[ends], ends + 1, right[ends])


def best_threshold(scores: np.ndarray, applies: np.ndarray) -> float:
    """Return the threshold with the best micro-F1 of all that separate two scores; both arguments are (rows, labels)."""
    curve = exact_curve(scores.ravel(), applies.ravel())
    place = curve.best()
    below = curve.thresholds[place + 1] if place + 1 < len(curve.thresholds) else 0.0
    return float((np.float64(curve.thresholds[place]) + below) / 2)


class ScoreHistogram(State):
    """Counts of the labels' probabilities in bins of log-odds, separately for rows with and without the label."""

    def __init__(self, labels: int) -> None:
        room = max(CELLS // (2 * max(labels, 1)), 16)
        self.bins = min(1 << (room.bit_length() - 1), MOST_BINS)
        self.counts = np.zeros((labels, self.bins, 2), np.int64)

    def update(self, scores: np.ndarray, applies: np.ndarray) -> None:
        """Add rows, both (rows, labels)."""
        labels = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        cells = (labels * self.bins + self._bin(scores)) * 2 + applies.astype(np.int64)
        np.add.at(self.counts.reshape(-1), cells.ravel(), 1)

    def _bin(self, scores: np.ndarray) -> np.ndarray:
        scores = scores.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            # NaN becomes 0: a model that diverges is reported by its loss
            odds = np.nan_to_num(np.log(scores) - np.log1p(-scores), posinf=RANGE, neginf=-RANGE)
        return np.clip((odds + RANGE) * (self.bins / (2 * RANGE)), 0, self.bins - 1).astype(np.int64)

    def sums(self) -> list[np.ndarray]:
        return [self.counts]

    def curve(self, counts: np.ndarray) -> Curve:
        """Return the curve of counts (bins, 2), of one label or of several together; a threshold is the lower bound of a bin."""
        falling = np.cumsum(counts[::-1], axis=0)
        odds = np.arange(self.bins - 1, -1, -1) * (2 * RANGE / self.bins) - RANGE
        thresholds = 1 / (1 + np.exp(-odds))
        thresholds[-1] = 0.0  # the lowest bin also holds scores below the range
        return Curve(thresholds, falling.sum(1), falling[:, 1])


class LabelScores(State):
    """The scores of labels in rows: all up to SCORES, beyond it those of a sample of rows, and a histogram of all rows."""

    def __init__(self, labels: int, rows: int) -> None:
        self.labels = labels
        self.kept = Rows(rows, max(SCORES // max(labels, 1), 1))
        self.histogram = None if self.kept.sample.is_whole else ScoreHistogram(labels)

    @property
    def sample(self) -> Sample:
        return self.kept.sample

    def update(self, numbers: np.ndarray, scores: np.ndarray, applies: np.ndarray) -> None:
        """Add rows: their numbers (rows,), the labels' scores and whether the labels apply, both (rows, labels)."""
        self.kept.update(numbers, scores=scores, applies=applies.astype(bool))
        if self.histogram is not None:
            self.histogram.update(scores, applies)

    def sums(self) -> list[np.ndarray]:
        return [] if self.histogram is None else self.histogram.sums()

    def payload(self) -> Any:
        return self.kept.payload()

    def merge(self, payloads: list[Any]) -> None:
        self.kept.merge(payloads)

    def single(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the stored rows: numbers (rows,), scores and whether labels apply, both (rows, labels)."""
        columns = self.kept.columns()
        empty = np.empty((0, self.labels), np.float32)
        return columns.get("number", np.empty(0, np.int64)), columns.get("scores", empty), columns.get("applies", empty > 0)

    def curve(self, label: int) -> Curve:
        """Return a label's curve."""
        if self.histogram is not None:
            return self.histogram.curve(self.histogram.counts[label])
        _, scores, applies = self.single()
        return exact_curve(scores[:, label], applies[:, label])

    def average_precisions(self) -> np.ndarray:
        """Return (labels,) the average precision of each label; 0 if the label applies to no row."""
        if self.histogram is None:
            return np.array([self.curve(label).average_precision() for label in range(self.labels)])
        falling = np.cumsum(self.histogram.counts[:, ::-1], axis=1)
        right, reached = falling[..., 1], falling.sum(2)
        gained = np.diff(right, axis=1, prepend=0)
        averages: np.ndarray = (gained * (right / np.maximum(reached, 1))).sum(1) / np.maximum(right[:, -1], 1)
        return averages

    def best_threshold(self) -> float:
        """Return the threshold with the best micro-F1."""
        if self.histogram is not None:
            curve = self.histogram.curve(self.histogram.counts.sum(0))
            return float(curve.thresholds[curve.best()])
        _, scores, applies = self.single()
        return best_threshold(scores, applies)

    def counts_at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (labels,) how often each label reaches a threshold from `best_threshold`, and how often the label then applies."""
        if self.histogram is None:
            _, scores, applies = self.single()
            reached = scores >= threshold
            return reached.sum(0), (reached & applies).sum(0)
        edges = self.histogram.curve(self.histogram.counts[0]).thresholds[::-1]
        above = self.histogram.counts[:, int(np.searchsorted(edges, threshold)) :].sum(1)
        return above.sum(1), above[:, 1]

    def points(self, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
        """Return the curve of each label that occurs, as points."""
        curves = {name: self.curve(label) for label, name in enumerate(names)}
        return {name: curve.points() for name, curve in curves.items() if curve.positives}
