"""Slices are cut as they say, and scored and tested as plain formulas and scipy have it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from llm_lightning.reporting.intervals import intervals, ratio_interval, share_interval
from llm_lightning.reporting.runs import Run
from llm_lightning.reporting.significance import correct
from llm_lightning.robustness.permutation import GROUPS, permute
from llm_lightning.robustness.row_scores import RowScores
from llm_lightning.robustness.slices import EVERY_ROW, TOO_FEW, score_slices
from llm_lightning.robustness.slicing import FEWEST, LISTED, Slice, cut_quartiles, cut_values

from ..reporting.test_significance import run_of


def mask(count: int, size: int) -> np.ndarray:
    return np.arange(count) < size


def test_holm_is_the_step_down_procedure() -> None:
    """Holm 1979: the k-th smallest of m probabilities times m - k + 1, and never less than the one before."""
    probabilities = np.random.default_rng(0).uniform(size=30) ** 3
    order, expected, largest = np.argsort(probabilities), np.empty(30), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (30 - rank) * probabilities[place])
        expected[place] = min(largest, 1)
    assert correct(probabilities.tolist(), 30) == pytest.approx(expected.tolist())
    assert len({*expected}) > 5


@pytest.mark.parametrize(("right", "wrong", "size", "right_inside"), [(60, 40, 30, 14), (90, 5, 12, 10), (900, 100, 300, 264)])
def test_right_and_wrong_rows_are_drawn_by_the_hypergeometric_distribution(
    right: int, wrong: int, size: int, right_inside: int
) -> None:
    """The exact probability is the sum over all numbers of right rows in the slice that differ as much from the rest."""
    total, top = right + wrong, np.r_[np.ones(right), np.zeros(wrong)]
    rows = np.r_[mask(right, right_inside), mask(wrong, size - right_inside)]
    numbers = np.arange(size + 1)
    difference = np.abs(numbers / size - (right - numbers) / (total - size))
    observed = abs(top[rows].mean() - top[~rows].mean())
    exact = scipy.stats.hypergeom.pmf(numbers, total, right, size)[difference >= observed - 1e-12].sum()
    (p,) = permute(top, np.ones(total), [rows], np.random.default_rng(0))
    assert p == pytest.approx(exact, abs=0.02)


def test_scores_that_all_differ_are_permuted() -> None:
    rng = np.random.default_rng(1)
    values = np.r_[rng.normal(0.25, 1, 120), rng.normal(0, 1, 2 * GROUPS)]
    rows = [mask(len(values), 120), mask(len(values), 300), ~mask(len(values), 500)]
    found = permute(values, np.ones(len(values)), rows, rng)
    for p, inside in zip(found, rows, strict=True):
        exact = scipy.stats.permutation_test(
            (values[inside], values[~inside]),
            lambda a, b, axis: np.abs(a.mean(axis) - b.mean(axis)),
            n_resamples=5000,
            alternative="greater",
            vectorized=True,
            rng=2,
        ).pvalue
        assert p == pytest.approx(exact, abs=0.03)
    assert 0.001 < found[0] < 0.2  # a value that tells something


def test_f1_of_a_slice_is_permuted_as_a_ratio() -> None:
    """All ways to choose the slice's rows: F1 weighs rows by their numbers of labels, so the mean of rows would differ."""
    right, labels = np.array([0, 1, 3, 0, 2, 1, 4, 0, 1, 2]), np.array([2, 2, 7, 4, 5, 3, 9, 1, 2, 6])

    def gap(inside: tuple[int, ...]) -> float:
        chosen = np.isin(np.arange(10), inside)
        return abs(2 * right[chosen].sum() / labels[chosen].sum() - 2 * right[~chosen].sum() / labels[~chosen].sum())

    observed, gaps = gap((0, 3, 7, 9)), [gap(inside) for inside in combinations(range(10), 4)]
    exact = np.mean(np.array(gaps) >= observed - 1e-12)
    (p,) = permute(2.0 * right, labels.astype(float), [np.isin(np.arange(10), (0, 3, 7, 9))], np.random.default_rng(0))
    assert p == pytest.approx(exact, abs=0.02)
    assert 0.001 < exact < 0.3


def test_the_interval_of_a_share_is_wilsons() -> None:
    for right, total in ((0, 20), (17, 20), (812, 1000), (50, 50)):
        expected = scipy.stats.binomtest(right, total).proportion_ci(method="wilson")
        assert share_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_interval_of_all_rows_is_that_of_the_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    true = rng.integers(1, 4, 300)
    found = rng.integers(1, 4, 300)
    right = np.minimum(rng.integers(0, 4, 300), np.minimum(true, found))
    f1 = 2 * right.sum() / (true + found).sum()
    examples = {"right": right.tolist(), "found": found.tolist(), "true": true.tolist()}
    run: Run = run_of(tmp_path, 0, {"test/micro_f1": float(f1)}, examples=examples)
    scores = RowScores("micro_f1", 2.0 * right, (true + found).astype(float), "share")
    every = np.ones(300, dtype=bool)
    assert scores.score(every) == pytest.approx(f1)
    assert scores.interval(every) == pytest.approx(intervals(run)["test/micro_f1"])
    assert ratio_interval(2.0 * right[:30], (true + found)[:30]) != scores.interval(every)


def test_slices_are_told_worst_first_and_too_few_rows_have_no_number() -> None:
    rng = np.random.default_rng(0)
    group = np.array(["a"] * 200 + ["b"] * 200 + ["c"] * 300 + ["d"] * 7)
    skill = {"a": 0.5, "b": 0.9, "c": 0.88, "d": 0.0}
    correct_rows = np.array([rng.random() < skill[name] for name in group]).astype(float)
    scores = RowScores("accuracy", correct_rows, np.ones(len(group)), "share")
    slices = [Slice("kind", name, group == name) for name in "dcba"] + [Slice("kind", "all", np.ones(len(group), dtype=bool))]
    entries = score_slices(slices, scores)
    assert [entry["slice"] for entry in entries[:1] + entries[-2:]] == ["a", "d", "all"]
    by_name = {entry["slice"]: entry for entry in entries}
    assert by_name["d"]["score"] is by_name["d"]["p"] is None
    assert by_name["d"]["note"] == TOO_FEW
    assert by_name["all"]["note"] == EVERY_ROW
    assert by_name["all"]["score"] == pytest.approx(correct_rows.mean())
    for name in "abc":
        inside = correct_rows[group == name]
        assert by_name[name]["score"] == pytest.approx(inside.mean())
        assert by_name[name]["rest"] == pytest.approx(correct_rows[group != name].mean())
        assert by_name[name]["low"] < inside.mean() < by_name[name]["high"]
        assert by_name[name]["p"] >= by_name[name]["p_single"]
    assert by_name["a"]["p"] == pytest.approx(3 * by_name["a"]["p_single"])  # the smallest of three
    assert by_name["a"]["p"] < 0.01
    errors = score_slices(slices[:4], RowScores("mae", 1 - correct_rows, np.ones(len(group)), "error"))
    assert errors[0]["slice"] == "a"  # of an error the largest is the worst


def test_quartiles_keep_equal_numbers_together_and_name_their_bounds() -> None:
    values = np.array([1.0, 2, 2, 2, 2, 3, 4, 5, 6, 7, 8, np.nan])
    cut = list(cut_quartiles("size", values, lambda low, high: f"{low:g}-{high:g}"))
    assert np.array([part.rows for part in cut]).sum(0).tolist() == [1] * 12  # each row in one slice
    assert cut[-1].name == "(empty)"
    for part in cut[:-1]:
        low, high = map(float, part.name.split("-"))
        assert ((values >= low) & (values <= high) == part.rows).all()


def test_rare_values_are_pooled_and_counted() -> None:
    values = np.array(["big"] * 60 + ["also"] * FEWEST + [f"rare {i}" for i in range(25) for _ in range(2)])
    cut = {part.name: int(part.rows.sum()) for part in cut_values("source", values)}
    assert cut == {"big": 60, "also": FEWEST, f"other (25 values with fewer than {FEWEST} rows each)": 50}
    many = np.repeat([f"v{i:03}" for i in range(LISTED + 5)], FEWEST)
    cut = {part.name: int(part.rows.sum()) for part in cut_values("source", many)}
    assert len(cut) == LISTED + 1
    assert cut[f"other (5 values behind the {LISTED} most frequent)"] == 5 * FEWEST
