"""Test whether one configuration is better than another, or by chance only.

If both have kept the score of each test example, these are compared in pairs: a bootstrap gives the interval of the difference, and a
permutation test that swaps the two at random in each example gives its probability by chance (Fisher 1935). If both have several seeds,
the bootstrap also draws seeds, and the probability is at least that of its draws: other seeds could give another result. Without
examples, seeds are compared in pairs by Student's t.

The permutation test is ours: of a million examples that are right or wrong it takes 0.01 s, of 100,000 with scores that all differ 1.5 s
and 44 MB. `scipy.stats.permutation_test` (1.17) takes 238 s and 222 MB for 100,000 right or wrong ones. Neither it nor
`scipy.stats.bootstrap` draws seeds beside examples, and Holm's correction is not in scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np

from llm_lightning.reporting.intervals import AT_ONCE, BOUNDS
from llm_lightning.reporting.runs import Group, Run

DRAWS = 5000


@dataclass(frozen=True)
class Comparison:
    """Two configurations: the difference of the first from the second in `score`, its 95% interval, and its probability by chance."""

    first: str
    second: str
    score: str
    difference: float
    low: float
    high: float
    p: float
    how: str


def half_width(values: Sequence[float]) -> float | None:
    """Return half of the 95% interval of the mean of a few values, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    # late: a training compares no runs, and scipy.special takes 0.1 s to import (scipy.stats 0.4 s)
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, BOUNDS[1])) * stdev(values) / math.sqrt(len(values))


def compare_groups(first: Group, second: Group, metric: str) -> Comparison | None:
    """Compare two groups by their test examples (or validation's), else by the seeds that both have; None if they have neither."""
    for split in ("test", "validation"):
        scores = [_examples(group, split) for group in (first, second)]
        if scores[0] is not None and scores[1] is not None and scores[0][:2] == scores[1][:2]:
            score, _, values = scores[0]
            return _compare_by_examples(first.name, second.name, f"{split} {score}", values, scores[1][2])
    pairs = _pair_by_seed(first, second, metric)
    return None if len(pairs) < 2 else _compare_by_seeds(first.name, second.name, metric.replace("/", " "), pairs)


def holm(comparisons: list[Comparison], pairs: int) -> list[Comparison]:
    """Return the comparisons with probabilities corrected for `pairs` pairs (Holm 1979); these are the relevant ones of all pairs."""
    corrected = correct([comparison.p for comparison in comparisons], pairs)
    return [replace(comparison, p=p) for comparison, p in zip(comparisons, corrected, strict=True)]


def correct(probabilities: Sequence[float], tests: int) -> list[float]:
    """Return probabilities corrected for `tests` tests by Holm's step-down procedure (Holm 1979), in their order."""
    adjusted, least = list(probabilities), 0.0
    for place, i in enumerate(sorted(range(len(adjusted)), key=lambda i: probabilities[i])):
        least = max(least, min(1.0, (tests - place) * probabilities[i]))
        adjusted[i] = least
    return adjusted


def _examples(group: Group, split: str) -> tuple[str, Any, np.ndarray] | None:
    """Return (name of the score, key of the examples, scores (seeds, examples)); None if a run has not kept them."""
    scores_by_run = [example_scores(run, split) for run in group.runs]
    available = [scores for scores in scores_by_run if scores is not None]
    if len(available) < len(scores_by_run) or any(scores[:2] != available[0][:2] for scores in available):
        return None
    return available[0][0], available[0][1], np.array([values for _, _, values in available], dtype=float)


def example_scores(run: Run, split: str) -> tuple[str, Any, np.ndarray] | None:
    """Return (name of the score, key of the examples, score of each example) of a run's evaluation of a split."""
    tables = run.evaluations().get(split, {})
    examples, rows = tables.get("examples") or {}, tables.get("rows")
    if {"right", "found", "true"} <= examples.keys():
        right, predicted, true = (np.array(examples[name]) for name in ("right", "found", "true"))
        name, values = "F1 of an example", np.where(predicted + true == 0, 1.0, 2 * right / np.maximum(predicted + true, 1))
    elif {"prediction", "target"} <= examples.keys():
        name, values = "squared error", (np.array(examples["prediction"]) - np.array(examples["target"])) ** 2
    elif score_name := next((name for name in ("correct", "f1", "chrf", "rouge_l") if examples.get(name)), None):
        titles = {"correct": "accuracy", "f1": "F1", "chrf": "chrF of a sentence", "rouge_l": "ROUGE-L"}
        name, values = titles[score_name], np.array(examples[score_name], float)
    elif batches := tables.get("batches"):  # the same ones only if they have the same targets
        name, values = "loss of a batch", np.array(batches["loss"]) / np.maximum(batches["targets"], 1)
        rows = (rows, tuple(batches["targets"]))
    else:
        return None
    return name, (rows, len(values)), values


def _compare_by_examples(first: str, second: str, score: str, first_scores: np.ndarray, second_scores: np.ndarray) -> Comparison:
    """Compare two groups by their scores (seeds, examples)."""
    rng, size, differences = np.random.default_rng(0), first_scores.shape[1], first_scores.mean(0) - second_scores.mean(0)
    drawn, rows = [], min(100, max(1, AT_ONCE // size))  # a few draws at once of a million examples
    for _ in range(0, 2000, rows):
        places = rng.integers(0, size, (rows, size))
        drawn.append(_resample(first_scores, places, rng) - _resample(second_scores, places, rng))
    means = np.concatenate(drawn)
    low, high = np.quantile(means, BOUNDS)
    how = f"{size:,} {'batches' if 'batch' in score else 'examples'}, permutation"
    p = permutation(differences, rng)
    if len(first_scores) > 1 and len(second_scores) > 1:
        p = max(p, min(1.0, 2 * (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (len(means) + 1)))
        how += f"; {len(first_scores)} and {len(second_scores)} seeds"
    return Comparison(first, second, score, float(differences.mean()), float(low), float(high), float(p), how)


def _resample(scores: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return mean scores (draws,) of the examples of each draw (draws, examples), over as many seeds drawn with replacement."""
    by_seed = np.array([of_seed[places].mean(1) for of_seed in scores])
    seeds = rng.integers(0, len(scores), (len(scores), len(places)))
    means: np.ndarray = np.take_along_axis(by_seed, seeds, 0).mean(0)
    return means


def permutation(differences: np.ndarray, rng: np.random.Generator) -> float:
    """Return how often the mean would be as far from zero if the sign of each difference were random; equal sizes are drawn together."""
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    single = counts == 1  # a random bit is drawn in a quarter of a binomial's time
    observed, total = abs(float(differences.sum())) * (1 - 1e-9), counts @ sizes
    rounds, as_far = max(1, min(DRAWS, (1 << 22) // len(sizes))), 0
    for start in range(0, DRAWS, rounds):
        rows = min(rounds, DRAWS - start)
        positive = rng.integers(0, 2, (rows, int(single.sum())), dtype=bool) @ sizes[single]
        positive += rng.binomial(counts[~single], 0.5, (rows, int((~single).sum()))) @ sizes[~single]
        as_far += int((np.abs(2 * positive - total) >= observed).sum())
    return (as_far + 1) / (DRAWS + 1)


def _pair_by_seed(first: Group, second: Group, metric: str) -> list[float]:
    values = [{run.summary["seed"]: run.metrics[metric] for run in g.runs if metric in run.metrics} for g in (first, second)]
    return [values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())]


def _compare_by_seeds(first: str, second: str, score: str, differences: list[float]) -> Comparison:
    from scipy.special import stdtr

    average, half = mean(differences), half_width(differences)
    assert half is not None
    error = stdev(differences) / math.sqrt(len(differences))
    p = 2 * float(stdtr(len(differences) - 1, -abs(average) / error)) if error else float(average == 0)
    return Comparison(first, second, score, average, average - half, average + half, p, f"{len(differences)} seeds, Student's t")
