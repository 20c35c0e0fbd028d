"""Tables of an evaluation that are no single number: how sure a model was, how often it was right then, and where it was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15  # of confidence, as in the calibration error
POINTS = 100  # of a curve, at the most
WORST = 20  # mistakes that are kept to be read


def calibration(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence, accuracy and number of examples in each bin of confidence that is not empty (Niculescu-Mizil and Caruana 2005).

    confidence, right (examples,).
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    parts = [(bins == place) for place in range(BINS)]
    return [
        {"confidence": float(confidence[part].mean()), "accuracy": float(right[part].mean()), "count": int(part.sum())}
        for part in parts
        if part.any()
    ]


def precision_recall(names: Sequence[str], scores: np.ndarray, applies: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Of each label that occurs, precision and recall at all thresholds, thinned out to POINTS.

    scores, applies (examples, labels).
    """
    curves = {}
    for i, name in enumerate(names):
        order = np.argsort(-scores[:, i], kind="stable")
        ranked, right = scores[order, i], np.cumsum(applies[order, i])
        if len(right) == 0 or right[-1] == 0:
            continue
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores are said together
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(POINTS, len(ends))).round().astype(int))]
        curves[name] = {"precision": (right[ends] / (ends + 1)).tolist(), "recall": (right[ends] / right[-1]).tolist()}
    return curves


def worst(wrong: np.ndarray, badness: np.ndarray) -> list[int]:
    """The examples that are wrong, the worst of them first; at most WORST."""
    places = np.flatnonzero(wrong)
    return places[np.argsort(-badness[places], kind="stable")[:WORST]].tolist()


def of_classes(names: Sequence[str], probabilities: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Calibration and precision-recall curves of a classifier, and whether it was right in each example.

    probabilities (examples, classes), classes (examples,).
    """
    right = probabilities.argmax(1) == classes
    return {
        "calibration": calibration(probabilities.max(1), right),
        "precision_recall": precision_recall(names, probabilities, classes[:, None] == np.arange(len(names))),
        "examples": {"correct": right.astype(int).tolist()},
    }
