"""Prediction sets hold the true class as often as they promise; they are those of the plain formula, and AURC is the mean of its risks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import betabinom

from llm_lightning.metrics.confidence import draw_curve, selective_risks
from llm_lightning.metrics.conformal import ConformalScores, least_probability, rows_needed

NAMES = ("a", "b", "c")


def draw(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model that is too sure, and true classes that are not equally frequent or equally hard."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
    logits = rng.normal(0, 2, (rows, 3))
    logits[np.arange(rows), labels] += np.array([3.0, 1.5, 0.5])[labels]
    shares = np.exp(2 * logits)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32), labels


def scores_of(probabilities: np.ndarray, labels: np.ndarray) -> ConformalScores:
    return ConformalScores(NAMES, labels, probabilities[np.arange(len(labels)), labels])


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("rows", [9, 10, 40, 400])
def test_sets_are_those_of_the_formula(rows: int, coverage: float) -> None:
    """{y: 1 - p(y) ≤ the ceil((n + 1) · coverage)-th smallest of 1 - p(true class)}, all classes if there are fewer rows."""
    probabilities, labels = draw(rows, seed=rows)
    others, _ = draw(200, seed=1)

    def sets_of(calibration: np.ndarray) -> np.ndarray:
        rank = math.ceil((len(calibration) + 1) * coverage - 1e-9)
        bound = np.sort(1 - calibration)[rank - 1] if rank <= len(calibration) else np.float32(1)
        return 1 - others <= bound

    true = probabilities[np.arange(rows), labels]
    scores = scores_of(probabilities, labels)
    # 1 - p rounds, p does not: where the two formulas differ, a probability is within a rounding of the threshold
    threshold = scores.thresholds(coverage, by_class=False)
    near = np.abs(others - threshold) < 1e-6
    assert ((others >= threshold) == sets_of(true))[~near].all()
    by_class = scores.thresholds(coverage, by_class=True)
    for label in range(3):
        near = np.abs(others[:, label] - by_class[label]) < 1e-6
        assert ((others[:, label] >= by_class[label]) == sets_of(true[labels == label])[:, label])[~near].all()
    assert (rows < rows_needed(coverage)) == (threshold[0] == 0)


@pytest.mark.parametrize("by_class", [False, True])
def test_coverage_over_twenty_cuts_is_within_its_exact_band(by_class: bool) -> None:
    """With n calibration rows and m others, the number of covered ones is beta-binomial (Angelopoulos and Bates 2021, section 3.2)."""
    probabilities, labels = draw(4000, seed=7)
    probabilities += np.random.default_rng(0).uniform(0, 1e-7, probabilities.shape).astype(np.float32)  # no two are equal
    covered = []
    for cut in range(20):
        order = np.random.default_rng(cut).permutation(len(labels))
        calibration, others = order[:800], order[800:]
        thresholds = scores_of(probabilities[calibration], labels[calibration]).thresholds(0.9, by_class)
        inside = (probabilities[others] >= thresholds)[np.arange(len(others)), labels[others]]
        for group in range(3) if by_class else [None]:
            of_group = labels[others] == group if by_class else np.ones(len(others), bool)
            n = int((labels[calibration] == group).sum()) if by_class else 800
            rank = math.ceil((n + 1) * 0.9)
            band = betabinom(int(of_group.sum()), rank, n + 1 - rank)
            assert 1e-4 < band.cdf(inside[of_group].sum()) < 1 - 1e-4
        covered.append(inside.mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01)


def test_a_threshold_for_all_rows_covers_rare_classes_less() -> None:
    """What predict.conditional=class is for."""
    (probabilities, labels), (others, true) = draw(2000, seed=1), draw(20_000, seed=2)
    scores, rare = scores_of(probabilities, labels), true == 2
    together, apart = (
        (others >= scores.thresholds(0.9, by_class))[np.arange(len(true)), true][rare].mean() for by_class in (False, True)
    )
    assert together < 0.8
    assert apart == pytest.approx(0.9, abs=0.05)


def test_too_few_rows_let_every_class_into_the_set() -> None:
    assert (rows_needed(0.9), rows_needed(0.95), rows_needed(0.5)) == (9, 19, 1)
    assert least_probability(np.array([0.3] * 8), 0.9) == 0
    assert least_probability(np.array([0.3] * 9), 0.9) == pytest.approx(0.3)
    scores = ConformalScores(NAMES, np.array([0] * 20 + [1] * 3), np.full(23, 0.5, np.float32))
    assert scores.thresholds(0.9, by_class=True).tolist() == [0.5, 0, 0]
    assert scores.classes_with_too_few_rows(0.9) == ["b", "c"]


def test_risks_are_those_of_every_share_and_ties_count_as_their_mean() -> None:
    rng = np.random.default_rng(4)
    confidence, right = rng.random(300), rng.random(300) < 0.8
    order = np.argsort(-confidence)
    expected = [1 - right[order[:k]].mean() for k in range(1, 301)]
    assert selective_risks(confidence, right) == pytest.approx(expected)
    curve = draw_curve(selective_risks(confidence, right))
    assert (len(curve["coverage"]), curve["coverage"][-1]) == (100, 1.0)
    assert curve["accuracy"] == pytest.approx([1 - expected[round(share * 300) - 1] for share in curve["coverage"]])
    # two of the three rows of confidence 0.9 are right, in whatever order they come
    tied = np.array([0.9, 0.9, 0.9, 0.5])
    for outcome in ([1, 1, 0, 0], [0, 1, 1, 0]):
        assert selective_risks(tied, np.array(outcome, bool)) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2])
