"""Find labels that are probably wrong from out-of-sample probabilities, by confident learning (Northcutt et al. 2021).

A row counts as confidently of class j if the probability of j reaches the mean probability of j over the rows labelled j. The counts of
(label, confident class) estimate how often each class is given the label of another. As many rows are suspects, those with the largest
margin of the other class over their label. The list and its order equal those of cleanlab 2.9's `find_label_issues` with its default
filter, `prune_by_noise_rate` (tests/metrics/test_confident_learning.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-6
"""Probabilities this close are equal: they come from float32."""
UNREACHABLE = 2.0
"""The threshold of a class that no row is labelled with."""


@dataclass(frozen=True)
class LabelErrors:
    """The rows whose label is probably wrong, the most suspicious first."""

    rows: np.ndarray
    """(suspects,) int64"""
    suggested: np.ndarray
    """(suspects,) int64: the most probable class of each."""
    scores: np.ndarray
    """(suspects,) the probability of the label that the row has (self-confidence), ascending."""
    joint: np.ndarray
    """(classes, classes) int64: the estimated number of rows by label and by true class; a row adds up to the number of its label."""


def find_label_errors(labels: np.ndarray, probabilities: np.ndarray) -> LabelErrors:
    """Return the suspects among rows with `labels`, (rows,), by the out-of-sample `probabilities` of the classes, (rows, classes)."""
    probabilities = probabilities.astype(np.float64)
    joint = calibrate(count_confident(labels, probabilities, compute_thresholds(labels, probabilities)), labels)
    is_suspect = np.zeros(len(labels), dtype=bool)
    counts = _keep_one_row(joint)
    for label, true in np.argwhere(counts):
        if label != true:
            members = np.flatnonzero(labels == label)
            margin = probabilities[members, true] - probabilities[members, label]
            largest = np.argsort(-margin, kind="stable")[: counts[label, true]]
            is_suspect[members[largest]] = len(members) > 1
    self_confidence = probabilities[np.arange(len(labels)), labels]
    suggested = probabilities.argmax(1)
    is_suspect &= probabilities.max(1, initial=0.0) > self_confidence + ROUNDING  # the model agrees with the label
    rows = np.flatnonzero(is_suspect)
    rows = rows[np.argsort(self_confidence[rows], kind="stable")]
    return LabelErrors(rows, suggested[rows], self_confidence[rows], joint)


def compute_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return (classes,) the mean probability of each class over the rows labelled with it (equation 2 of the paper)."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=classes)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), UNREACHABLE)
    return np.maximum(means, 2 * ROUNDING)


def count_confident(labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return (classes, classes) the confident joint: the number of rows by label and by the class that they confidently belong to.

    A row that reaches no threshold does not count. One that reaches several counts for its most probable class, as in cleanlab; the paper
    takes the most probable of those whose threshold it reaches. Every class has at least one row with its own label.
    """
    classes = probabilities.shape[1]
    is_confident = probabilities >= thresholds - ROUNDING
    reached = is_confident.sum(1)
    true = np.where(reached > 1, probabilities.argmax(1), is_confident.argmax(1))
    counted = reached > 0
    joint = np.bincount(labels[counted] * classes + true[counted], minlength=classes * classes).reshape(classes, classes)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    return joint


def calibrate(joint: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (classes, classes) int64, each row scaled to the number of rows with its label (equation 3), in whole numbers."""
    totals = np.bincount(labels, minlength=len(joint))
    scaled = joint / joint.sum(1, keepdims=True) * totals[:, None]
    rounded_counts = np.rint(scaled).astype(np.int64)
    missing = (totals - rounded_counts.sum(1))[:, None]  # goes to the largest remainders of each row, of equal ones to the last
    place = np.argsort(np.argsort(scaled - rounded_counts, axis=1, kind="stable"), axis=1, kind="stable")
    return rounded_counts + (place >= len(joint) - missing) - (place < -missing)


def noise_matrix(joint: np.ndarray) -> np.ndarray:
    """Return (classes, classes) the estimated probability of each label, by true class: entry [i, j] is p(label i | true class j)."""
    matrix: np.ndarray = joint / np.maximum(joint.sum(0), 1)
    return matrix


def _keep_one_row(joint: np.ndarray) -> np.ndarray:
    """Return the counts with at least one row of each label left, taken from the largest count of suspects."""
    counts = joint.copy()
    for label in np.flatnonzero((joint.diagonal() == 0) & (joint.sum(1) > 0)):
        counts[label, counts[label].argmax()] -= 1
        counts[label, label] = 1
    return counts
