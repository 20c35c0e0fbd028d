"""Counts of an evaluation: classes, pairs of confused classes, bins of confidence, and other whole numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_lightning.metrics.rows import Sample
from llm_lightning.metrics.state import State

DENSE = 1000
"""Most classes for which evaluation/<split>.json has a cell for each pair, and an entry for each class."""
LISTED = 100
"""Pairs that are listed, and classes beyond DENSE."""
PAIRS = 1 << 22
"""Rows whose confused classes are counted beyond DENSE classes; of more rows a sample is counted."""
BINS = 15
"""Bins of confidence, as in the calibration error."""


class Sums(State):
    """Named int64 arrays that add up over batches and ranks."""

    def __init__(self, **shapes: int) -> None:
        self.arrays = {name: np.zeros(size, np.int64) for name, size in shapes.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def sums(self) -> list[np.ndarray]:
        return list(self.arrays.values())


class Tally(State):
    """Counts of names that are not known in advance."""

    def __init__(self) -> None:
        self.counts: Counter[Any] = Counter()

    def update(self, names: Any) -> None:
        self.counts.update(names)

    def __getitem__(self, name: Any) -> int:
        return self.counts[name]

    def payload(self) -> Any:
        return self.counts

    def merge(self, payloads: list[Any]) -> None:
        self.counts = sum(payloads, Counter())


class ClassCounts(Sums):
    """How often each class is right, true and predicted, for accuracy, macro-F1 and MCC."""

    def __init__(self, classes: int) -> None:
        super().__init__(right=classes, true=classes, predicted=classes)

    def update(self, true: np.ndarray, predicted: np.ndarray) -> None:
        """Add the true and the predicted classes of rows, both (rows,)."""
        np.add.at(self["true"], true, 1)
        np.add.at(self["predicted"], predicted, 1)
        np.add.at(self["right"], true[true == predicted], 1)

    def accuracy(self) -> float:
        return int(self["right"].sum()) / max(int(self["true"].sum()), 1)

    def macro_f1(self) -> float:
        """Return the mean F1 of the classes that occur or are predicted."""
        occurs = self["true"] + self["predicted"] > 0
        return float(self._f1()[occurs].mean()) if occurs.any() else 0.0

    def mcc(self) -> float:
        """Return Matthews' correlation of several classes (Gorodkin 2004, equation 8); 0 if one class is always true or predicted."""
        right, true, predicted = (self[name].astype(object) for name in ("right", "true", "predicted"))  # exact integers
        count = true.sum()
        spread = (count**2 - (true * true).sum()) * (count**2 - (predicted * predicted).sum())
        return float((right.sum() * count - (true * predicted).sum()) / math.sqrt(spread)) if spread else 0.0

    def _f1(self) -> np.ndarray:
        f1: np.ndarray = 2 * self["right"] / np.maximum(self["true"] + self["predicted"], 1)
        return f1

    def per_class(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        return per_class(names, self["right"], self["true"], self["predicted"])


def per_class(names: Sequence[str], right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and number of each class, from counts (classes,); beyond DENSE classes only the LISTED worst that occur.

    The worst classes have the lowest F1; among equal ones the more frequent come first.
    """
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(true + predicted, 1)
    chosen = np.arange(len(names))
    if len(names) > DENSE:
        occurring = np.flatnonzero(true)
        chosen = occurring[np.lexsort((-true[occurring], f1[occurring]))[:LISTED]]
    return {
        names[i]: {"precision": float(precision[i]), "recall": float(recall[i]), "f1": float(f1[i]), "support": int(true[i])}
        for i in chosen.tolist()
    }


class Confusion(State):
    """How often each class was predicted in place of another: a dense matrix up to DENSE classes, beyond it the pairs that occur.

    `rows` is the number of rows; of more than PAIRS rows a sample is counted.
    """

    def __init__(self, classes: int, rows: int) -> None:
        self.classes, self.is_dense = classes, classes <= DENSE
        self.matrix = np.zeros((classes, classes) if self.is_dense else (0, 0), np.int64)
        """(true classes, predicted classes)"""
        self.sample = Sample(rows, PAIRS)
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._size = 0

    def update(self, numbers: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> None:
        """Add rows: their numbers, true and predicted classes, each (rows,)."""
        if self.is_dense:
            np.add.at(self.matrix, (true, predicted), 1)
            return
        wrong = (true != predicted) & self.sample.contains(numbers)
        self._pending.append(true[wrong].astype(np.int64) * self.classes + predicted[wrong])
        self._size += len(self._pending[-1])
        if self._size > PAIRS // 4:
            self._compact()

    def _compact(self) -> None:
        keys = np.concatenate([self._keys, *self._pending])
        counts = np.concatenate([self._counts, np.ones(len(keys) - len(self._keys), np.int64)])
        self._keys, self._counts = _sum_by_key(keys, counts)
        self._pending, self._size = [], 0

    def sums(self) -> list[np.ndarray]:
        return [self.matrix] if self.is_dense else []

    def payload(self) -> Any:
        self._compact()
        return self._keys, self._counts

    def merge(self, payloads: list[Any]) -> None:
        keys, counts = (np.concatenate(parts) for parts in zip(*payloads, strict=True))
        self._keys, self._counts = _sum_by_key(keys, counts)

    def top(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the LISTED pairs of classes that are confused most often: `true`, `said` (predicted) and `count`."""
        if self.is_dense:
            wrong = self.matrix - np.diag(np.diag(self.matrix))
            keys = np.flatnonzero(wrong)
            counts = wrong.ravel()[keys]
        else:
            self._compact()
            keys, counts = self._keys, self._counts
        order = np.lexsort((keys, -counts))[:LISTED]
        return [
            {"true": names[key // self.classes], "said": names[key % self.classes], "count": count}
            for key, count in zip(keys[order].tolist(), counts[order].tolist(), strict=True)
        ]


def _sum_by_key(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each key once, sorted, with the sum of its counts."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(counts, first)


class Calibration(Sums):
    """Confidence and accuracy in bins of confidence, for the calibration error and the reliability diagram.

    Confidences are added up as whole numbers of a unit of at most 2^-20, so that their order does not matter. For fewer than a thousand
    million examples the unit is 2^-32, far below the resolution of a float32.
    """

    def __init__(self, examples: int) -> None:
        super().__init__(count=BINS + 1, right=BINS + 1, confidence=BINS + 1)
        self.unit = 2.0 ** -min(32, 61 - max(examples, 1).bit_length())
        self._edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)

    def update(self, confidence: np.ndarray, right: np.ndarray) -> None:
        """Add examples, both (examples,). A confidence of exactly 1 has its own bin, as in torchmetrics 1.9."""
        confidence = np.nan_to_num(confidence)  # a model that diverges is reported by its loss
        bins = np.searchsorted(self._edges, confidence, side="right") - 1
        np.add.at(self["count"], bins, 1)
        np.add.at(self["right"], bins, right.astype(np.int64))
        np.add.at(self["confidence"], bins, np.rint(confidence.astype(np.float64) / self.unit).astype(np.int64))

    def error(self) -> float:
        """Return the expected calibration error: Σ share of a bin · |accuracy - confidence| (Naeini et al. 2015)."""
        gaps = np.abs(self["right"] - self["confidence"] * self.unit)
        return float(gaps.sum() / max(int(self["count"].sum()), 1))

    def table(self) -> list[dict[str, Any]]:
        """Return mean confidence, accuracy and number of examples of each bin that is not empty (Niculescu-Mizil and Caruana 2005)."""
        count, right, confidence = (_join_last_two(self[name]) for name in ("count", "right", "confidence"))
        return [
            {"confidence": float(c * self.unit / n), "accuracy": float(r / n), "count": int(n)}
            for n, r, c in zip(count, right, confidence, strict=True)
            if n
        ]


def _join_last_two(values: np.ndarray) -> np.ndarray:
    return np.append(values[:-2], values[-2:].sum())
