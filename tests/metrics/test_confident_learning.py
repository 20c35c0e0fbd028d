"""Confident learning by its published formulas in plain loops, and beside cleanlab where that is installed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from llm_lightning.metrics import confident_learning as cl


def draw(classes: int, rows: int, seed: int, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return true classes, labels of which some are wrong, and probabilities that know more than the labels."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, rows)
    true[:classes] = np.arange(classes)
    logits = rng.normal(0, 1, (rows, classes)) + 3 * np.eye(classes)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.where(rng.random(rows) < noise, rng.integers(0, classes, rows), true)
    labels[:classes] = np.arange(classes)
    return true, labels, probabilities


def find_by_loops(labels: np.ndarray, p: np.ndarray) -> tuple[list[float], list[list[int]], list[int]]:
    """Return thresholds, the confident joint before it is calibrated, and the suspects, the lowest self-confidence first."""
    rows, classes = p.shape
    thresholds = []
    for j in range(classes):
        own = [p[i, j] for i in range(rows) if labels[i] == j]
        thresholds.append(sum(own) / len(own))
    joint = [[0] * classes for _ in range(classes)]
    for i in range(rows):
        reached = [j for j in range(classes) if p[i, j] >= thresholds[j]]
        if reached:
            joint[labels[i]][reached[0] if len(reached) == 1 else int(p[i].argmax())] += 1
    counts = cl.calibrate(np.array(joint), labels)
    suspects: set[int] = set()
    for given in range(classes):
        for true in range(classes):
            if given != true:
                members = sorted((i for i in range(rows) if labels[i] == given), key=lambda i: p[i, given] - p[i, true])
                suspects |= {i for i in members[: counts[given, true]] if p[i].argmax() != given}
    return thresholds, joint, sorted(suspects, key=lambda i: p[i, labels[i]])


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_suspects_equal_plain_loops(classes: int) -> None:
    _, labels, probabilities = draw(classes, 300, classes)
    thresholds, joint, suspects = find_by_loops(labels, probabilities)
    assert cl.compute_thresholds(labels, probabilities) == pytest.approx(thresholds)
    assert cl.count_confident(labels, probabilities, np.array(thresholds)).tolist() == joint
    errors = cl.find_label_errors(labels, probabilities)
    assert errors.rows.tolist() == suspects
    assert errors.scores.tolist() == probabilities[suspects, labels[suspects]].tolist()
    assert errors.suggested.tolist() == probabilities[suspects].argmax(1).tolist()


def test_the_estimates_are_near_the_noise_that_was_planted() -> None:
    true, labels, probabilities = draw(3, 6000, 0)
    errors = cl.find_label_errors(labels, probabilities)
    assert errors.joint.sum(1).tolist() == np.bincount(labels).tolist()
    planted = np.histogram2d(labels, true, bins=3)[0]
    assert np.abs(cl.noise_matrix(errors.joint) - planted / planted.sum(0)).max() < 0.05
    wrong = set(np.flatnonzero(labels != true).tolist())
    assert len(wrong & set(errors.rows.tolist())) / len(wrong) > 0.75


def test_a_calibrated_row_has_as_many_rows_as_its_label() -> None:
    labels = np.repeat([0, 1, 2], [10, 7, 0])
    joint = cl.calibrate(np.array([[3, 1, 1], [1, 1, 1], [0, 0, 1]]), labels)
    assert joint.tolist() == [[6, 2, 2], [2, 2, 3], [0, 0, 0]]


def test_a_class_keeps_a_row_and_an_unused_class_is_nobody_s() -> None:
    labels, sure = (
        np.array([0, 0, 1, 1, 1]),
        np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0]]),
    )
    errors = cl.find_label_errors(labels, sure)
    assert len(errors.rows) == 1  # not both rows of the first class
    assert errors.joint[:, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
def test_the_ranking_is_cleanlab_s(classes: int, noise: float) -> None:
    cleanlab = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    count = pytest.importorskip("cleanlab.count")
    for seed in range(10):
        _, labels, probabilities = draw(classes, 700, seed, noise)
        expected = cleanlab.find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
        errors = cl.find_label_errors(labels, probabilities)
        difference = np.abs(count.compute_confident_joint(labels, probabilities) - errors.joint)
        assert difference.max() <= 1  # where remainders are equal, it depends on numpy's sort which one is rounded up
        assert len(set(expected.tolist()) ^ set(errors.rows.tolist())) <= difference.sum()
        both = [row for row in errors.rows.tolist() if row in set(expected.tolist())]
        if len(both) > 2:
            assert spearmanr(range(len(both)), [expected.tolist().index(row) for row in both])[0] > 0.999


def test_labels_of_a_set_are_ranked_as_cleanlab_ranks_each() -> None:
    filters = pytest.importorskip("cleanlab.multilabel_classification.filter", reason="cleanlab is not installed")
    rng = np.random.default_rng(0)
    truth = rng.random((500, 3)) < [0.5, 0.2, 0.05]
    applies = truth ^ (rng.random(truth.shape) < 0.1)
    p = 1 / (1 + np.exp(-(6 * truth - 3 + rng.normal(0, 1.5, truth.shape))))
    lists = [np.flatnonzero(row).tolist() for row in applies]
    expected = filters.find_multilabel_issues_per_class(lists, p, return_indices_ranked_by="self_confidence", n_jobs=1)[0]
    for i, rows in enumerate(expected):
        own = cl.find_label_errors(applies[:, i].astype(int), np.stack([1 - p[:, i], p[:, i]], axis=1))
        assert own.rows.tolist() == rows.tolist()
