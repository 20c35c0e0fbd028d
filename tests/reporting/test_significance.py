"""Intervals and tests against what is known of them: tables, exact enumerations, formulas."""

from __future__ import annotations

import json
import math
import tracemalloc
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from llm_lightning.reporting.intervals import DRAWS, intervals, resample_confusion
from llm_lightning.reporting.runs import Group, Run
from llm_lightning.reporting.significance import Comparison, compare_groups, half_width, holm, permutation


def test_student_t_is_that_of_the_tables() -> None:
    """Abramowitz and Stegun 1964, table 26.10: the half width of n values ±1 is t / √(n - 1)."""
    for freedom, expected in {1: 12.706, 3: 3.182, 5: 2.571, 119: 1.980}.items():
        assert half_width([-1.0, 1.0] * ((freedom + 1) // 2)) == pytest.approx(expected / math.sqrt(freedom), rel=4e-4)
    assert half_width([0.5]) is None


def test_seeds_are_compared_by_the_paired_t_test(tmp_path: Path) -> None:
    metrics = [[0.84, 0.86, 0.83, 0.88, 0.85], [0.83, 0.83, 0.84, 0.84, 0.84]]
    groups = [
        Group(str(i), [run_of(tmp_path / f"{i}-{seed}", seed, {"test/f1": value}) for seed, value in enumerate(values)])
        for i, values in enumerate(metrics)
    ]
    comparison = compare_groups(groups[0], groups[1], "test/f1")
    assert comparison is not None
    expected = scipy.stats.ttest_rel(*metrics)
    assert comparison.p == pytest.approx(expected.pvalue)
    assert (comparison.low, comparison.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_permutation_is_exact() -> None:
    differences = np.array([0.5, -0.2, 0.9, 0.4, 0.1, -0.3, 0.7, 0.2])
    sums = [abs(float(np.dot(signs, differences))) for signs in product((-1, 1), repeat=len(differences))]
    exact = float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9))
    assert permutation(differences, np.random.default_rng(0)) == pytest.approx(exact, abs=0.02)
    assert 0.05 < exact < 0.3  # a value that tells something
    differences = np.array([0.5, -0.2, 0.9, 0.2, 0.2, -0.2, 0.7, 0.0])  # with sizes that occur several times
    exact = scipy.stats.permutation_test((differences,), np.sum, permutation_type="samples").pvalue
    assert permutation(differences, np.random.default_rng(0)) == pytest.approx(exact, abs=0.02)
    # right or wrong: McNemar's exact test of 26 against 12, whatever both had right
    differences = np.array([1] * 26 + [-1] * 12 + [0] * 500)
    exact = 2 * sum(comb(38, k) for k in range(13)) / 2**38
    assert permutation(differences, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)
    assert permutation(np.zeros(50), np.random.default_rng(0)) == 1.0


def test_holm_by_hand() -> None:
    def given(p: float) -> Comparison:
        return Comparison("a", "b", "accuracy", 0.0, 0.0, 0.0, p, "")

    four = [given(p) for p in (0.04, 0.01, 0.03, 0.5)]
    assert [c.p for c in holm(four, 4)] == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert [c.p for c in holm(four, 6)] == pytest.approx([0.16, 0.06, 0.15, 1.0])


def test_intervals_of_a_confusion_matrix_are_those_of_its_examples() -> None:
    matrix = np.array([[300, 60, 10], [30, 250, 40], [5, 15, 90]])
    drawn = resample_confusion(matrix, np.random.default_rng(0))
    count, accuracy = matrix.sum(), np.trace(matrix) / matrix.sum()
    assert drawn["accuracy"].std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / count), rel=0.1)  # the binomial's
    true, said = (np.repeat(np.indices(matrix.shape)[axis].ravel(), matrix.ravel()) for axis in (0, 1))
    rng, scores = np.random.default_rng(1), []
    for _ in range(1000):
        places = rng.integers(0, count, count)
        right = true[places] == said[places]
        f1 = [2 * (right & (true[places] == c)).sum() / ((true[places] == c).sum() + (said[places] == c).sum()) for c in range(3)]
        scores.append(np.mean(f1))
    assert np.quantile(drawn["macro_f1"], [0.025, 0.975]) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.004)
    mcc = np.corrcoef(true == 0, said == 0)[0, 1]  # of two classes MCC is a correlation
    two = np.array([[370 - 70, 70], [35, 395]])
    assert resample_confusion(two, np.random.default_rng(0))["mcc"].mean() == pytest.approx(mcc, abs=0.005)


def run_of(folder: Path, seed: int, metrics: dict[str, float], **tables: Any) -> Run:
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "test.json").write_text(json.dumps(tables))
    summary = {"seed": seed, "metrics": metrics, "objective": "classification", "data": {"name": "reviews"}}
    return Run(folder, summary, {})


def test_intervals_hold_what_a_run_came_to(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=300)
    said = target + rng.normal(size=300)
    pearson = float(np.corrcoef(said, target)[0, 1])
    run = run_of(tmp_path, 0, {"test/pearson": pearson}, examples={"prediction": said.tolist(), "target": target.tolist()})
    low, high = intervals(run)["test/pearson"]
    z, width = np.arctanh(pearson), 1.96 / np.sqrt(297)  # Fisher's interval
    assert (low, high) == pytest.approx((np.tanh(z - width), np.tanh(z + width)), abs=0.03)

    target = np.minimum(rng.exponential(size=300) ** 2, 40).round()  # most of them are equal
    said = np.sqrt(target) + rng.normal(0, 0.3, 300)
    spearman = float(scipy.stats.spearmanr(said, target).statistic)
    run = run_of(
        tmp_path / "ties", 0, {"test/spearman": spearman}, examples={"prediction": said.tolist(), "target": target.tolist()}
    )
    low, high = intervals(run)["test/spearman"]
    assert low < spearman < high
    assert high - low < 0.1

    loss, targets = rng.uniform(50, 70, 40), np.full(40, 20)
    mean = float(loss.sum() / targets.sum())
    metrics = {"test/loss": mean, "test/perplexity": float(np.exp(mean)), "test/bits_per_byte": 0.5 * mean}
    found = intervals(run_of(tmp_path / "lm", 0, metrics, batches={"loss": loss.tolist(), "targets": targets.tolist()}))
    assert found["test/loss"][0] < mean < found["test/loss"][1]
    assert found["test/perplexity"] == pytest.approx(tuple(np.exp(found["test/loss"])))
    assert found["test/bits_per_byte"] == pytest.approx(tuple(0.5 * bound for bound in found["test/loss"]))


def test_other_seeds_could_have_said_otherwise(tmp_path: Path) -> None:
    """On many examples a difference that is smaller than that between seeds is real, but not the configuration's."""
    rng = np.random.default_rng(0)

    def group(name: str, skills: list[float]) -> Group:
        drawn = [(rng.uniform(size=20_000) < skill).astype(int).tolist() for skill in skills]
        runs = [run_of(tmp_path / f"{name}-{i}", i, {}, examples={"correct": right}) for i, right in enumerate(drawn)]
        return Group(name, runs)

    noisy = compare_groups(group("a", [0.86, 0.80, 0.84]), group("b", [0.81, 0.85, 0.79]), "test/accuracy")
    steady = compare_groups(group("c", [0.84, 0.84, 0.84]), group("d", [0.82, 0.82, 0.82]), "test/accuracy")
    assert noisy is not None
    assert steady is not None
    assert noisy.p > 0.05
    assert noisy.low < 0 < noisy.high
    assert steady.p < 0.01


def test_two_configurations_by_their_examples_or_by_their_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=400)  # both fail at the same examples: pairs show what the two intervals would hide

    def group(name: str, skill: float, rows: str = "the same") -> Group:
        runs = []
        for seed in (1, 2, 3):
            correct = (hard < skill).astype(int)
            folder = tmp_path / f"{name}-{seed}"
            accuracy = float(correct.mean()) + 0.001 * seed
            runs.append(run_of(folder, seed, {"test/accuracy": accuracy}, examples={"correct": correct.tolist()}, rows=rows))
        return Group(name, runs)

    better, worse, elsewhere = group("better", 0.8), group("worse", 0.77), group("elsewhere", 0.77, rows="others")
    found = compare_groups(better, worse, "test/accuracy")
    assert found is not None
    assert found.difference == pytest.approx(float(((hard < 0.8).astype(int) - (hard < 0.77)).mean()))
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.01
    assert "400 examples" in found.how
    same = compare_groups(better, better, "test/accuracy")
    assert same is not None
    assert (same.difference, same.p) == (0.0, 1.0)
    by_seed = compare_groups(better, elsewhere, "test/accuracy")  # other examples: not to be paired
    assert by_seed is not None
    assert by_seed.how == "3 seeds, Student's t"
    assert compare_groups(better, Group("one", elsewhere.runs[:1]), "test/accuracy") is None


def test_intervals_of_a_thousand_classes_need_little_memory() -> None:
    """All cells of the drawn matrices would take 8 GB."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((1000, 1000), int)
    true = rng.integers(0, 1000, 8000)
    np.add.at(matrix, (true, np.where(rng.random(8000) < 0.8, true, rng.integers(0, 1000, 8000))), 1)
    tracemalloc.start()
    drawn = resample_confusion(matrix, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 << 20
    accuracy = np.trace(matrix) / 8000
    assert drawn["accuracy"].mean() == pytest.approx(accuracy, abs=0.001)
    assert drawn["accuracy"].std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 8000), rel=0.1)
    assert all(len(values) == DRAWS for values in drawn.values())


def test_the_interval_of_a_sampled_score_is_that_of_all_examples(tmp_path: Path) -> None:
    """150,000 examples are kept of 10,000,000, and 100,000 of them are drawn at a time."""
    correct = (np.random.default_rng(0).random(150_000) < 0.8).astype(int)
    tables = {"examples": {"correct": correct.tolist()}, "sampled": {"of": 10_000_000}}
    low, high = intervals(run_of(tmp_path, 0, {"test/accuracy": 0.801}, **tables))["test/accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 10_000_000)
    assert (low, high) == pytest.approx((0.801 - half, 0.801 + half), abs=0.1 * half)
