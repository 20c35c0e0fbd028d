"""Prediction sets that hold the true class with a given probability: split conformal prediction (Angelopoulos and Bates 2021).

The score of a row is 1 - p(true class), LAC's (Sadinle et al. 2019): of all scores it gives the smallest sets on average, and a row
whose set has one class needs no abstaining. A set holds the classes with a probability of at least a threshold. With n calibration rows,
the threshold is their ceil((n + 1) · coverage)-th largest probability of the true class. Then a new row's set holds the true class with
a probability between `coverage` and `coverage` + 1 / (n + 1), if it comes from the same source as the rows and no two probabilities are
equal. By class (Mondrian; Vovk et al. 2005), each class has the threshold of its own rows, and the same holds for the rows of each class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MOST = 10_000
"""Calibration rows that are stored, at most: with as many, the coverage of a run's sets varies by 0.3 points around 90%."""


def least_probability(probabilities: np.ndarray, coverage: float) -> float:
    """Return the threshold, from calibration rows' probabilities of the true class (rows,); 0 if they are too few for the coverage."""
    rank = math.ceil(round((len(probabilities) + 1) * coverage, 9))  # 0.9 · 10 is more than 9 in floating point
    if rank > len(probabilities):
        return 0.0
    return float(np.partition(probabilities, len(probabilities) - rank)[len(probabilities) - rank])


@dataclass(frozen=True)
class ConformalScores:
    """Calibration rows: their true classes and the probabilities of these."""

    names: tuple[str, ...]
    """The names of the classes."""
    labels: np.ndarray
    """(rows,) the number of the true class."""
    probabilities: np.ndarray
    """(rows,) float32"""

    def thresholds(self, coverage: float, by_class: bool) -> np.ndarray:
        """Return (classes,) float32 the least probability of a class in a set."""
        if by_class:
            values = [least_probability(self.probabilities[self.labels == label], coverage) for label in range(len(self.names))]
        else:
            values = [least_probability(self.probabilities, coverage)] * len(self.names)
        return np.array(values, np.float32)

    def classes_with_too_few_rows(self, coverage: float) -> list[str]:
        """Return the classes that have too few rows for a threshold of their own: every set by class holds them."""
        counts = np.bincount(self.labels, minlength=len(self.names))
        return [name for name, count in zip(self.names, counts.tolist(), strict=True) if count < rows_needed(coverage)]


def rows_needed(coverage: float) -> int:
    """Return the fewest calibration rows that a threshold can be computed from."""
    return math.ceil(round(coverage / (1 - coverage), 9))
