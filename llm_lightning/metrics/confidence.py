"""How far a classifier's confidence can be relied on: the risk at each coverage, prediction sets, calibration before the temperature."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_lightning.metrics.conformal import MOST, ConformalScores, least_probability
from llm_lightning.metrics.counts import Calibration, Sums
from llm_lightning.metrics.rows import SCORED, Rows
from llm_lightning.metrics.state import State

COVERAGE = 0.9
"""Coverage of the prediction sets that an evaluation reports."""
POINTS = 100
"""Points of a curve, at most."""


class Confidence(State):
    """The confidence of each row, the probability of its true class, and the size of its prediction set."""

    def __init__(self, rows: int) -> None:
        self.ranked = Rows(rows, SCORED)
        self.scores = Rows(rows, MOST)
        self.before = Calibration(rows)
        """Confidence before the temperature."""
        self.sets = Sums(rows=1, covered=1, single=1, right=1)
        """Rows with a prediction set: all, those whose set holds the true class, those with one class, those whose one class is true."""
        self._children: tuple[State, ...] = (self.ranked, self.scores, self.before, self.sets)

    def update(
        self, numbers: np.ndarray, confidence: np.ndarray, right: np.ndarray, labels: np.ndarray, of_label: np.ndarray
    ) -> None:
        """Add rows, each argument (rows,): number, highest probability, whether its class is true, the true class and its probability."""
        self.ranked.update(numbers, confidence=confidence, right=right)
        self.scores.update(numbers, label=labels.astype(np.int64), probability=of_label.astype(np.float32))

    def count_sets(self, sizes: np.ndarray, covered: np.ndarray) -> None:
        """Add prediction sets, each argument (rows,): the number of classes, and whether the true class is one of them."""
        for name, values in {"rows": sizes >= 0, "covered": covered, "single": sizes == 1, "right": covered & (sizes == 1)}.items():
            self.sets[name][0] += int(values.sum())

    def sums(self) -> list[np.ndarray]:
        return [array for child in self._children for array in child.sums()]

    def payload(self) -> Any:
        return [child.payload() for child in self._children]

    def merge(self, payloads: list[Any]) -> None:
        for child, *parts in zip(self._children, *payloads, strict=True):
            child.merge(parts)

    def conformal_scores(self, names: tuple[str, ...]) -> ConformalScores:
        """Return the rows as calibration rows of prediction sets."""
        columns = self.scores.columns()
        empty = np.empty(0, np.int64)
        return ConformalScores(names, columns.get("label", empty), columns.get("probability", empty.astype(np.float32)))

    def tables(self) -> dict[str, Any]:
        """Return the entries of evaluation/<split>.json."""
        columns = self.ranked.columns()
        tables: dict[str, Any] = {}
        if columns:
            risks = selective_risks(columns["confidence"], columns["right"])
            tables |= {"risk_coverage": draw_curve(risks), "aurc": float(risks.mean())}
        if self.before["count"].any():
            tables |= {"calibration_before": self.before.table(), "ece_before": self.before.error()}
        if rows := int(self.sets["rows"][0]):
            covered, single, right = (int(self.sets[name][0]) for name in ("covered", "single", "right"))
            tables["sets"] = {
                "aim": COVERAGE,
                "coverage": covered / rows,
                "one_label": single / rows,
                "accuracy_of_one_label": right / single if single else None,
            }
        return tables


def report_threshold(scores: ConformalScores) -> float:
    """Return the threshold of the prediction sets that an evaluation reports."""
    return least_probability(scores.probabilities, COVERAGE)


def selective_risks(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (rows,) the share of mistakes among the k most confident rows, k from 1 on (Geifman et al. 2019).

    Their mean is AURC, the area under the risk-coverage curve. Rows of equal confidence come in a random order: each counts as the mean of
    all of them.
    """
    _, group = np.unique(-confidence, return_inverse=True)
    mean_error = np.bincount(group, 1.0 - right) / np.bincount(group)
    risks: np.ndarray = np.cumsum(mean_error[np.sort(group)]) / np.arange(1, len(right) + 1)
    return risks


def draw_curve(risks: np.ndarray) -> dict[str, list[float]]:
    """Return the accuracy of the most confident share of the rows, at up to POINTS shares."""
    count = len(risks)
    kept_rows = np.unique(np.ceil(np.linspace(0, 1, min(POINTS, count) + 1)[1:] * count).astype(int))
    return {"coverage": (kept_rows / count).tolist(), "accuracy": (1 - risks[kept_rows - 1]).tolist()}
