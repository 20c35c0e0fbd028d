"""Compute 95% intervals of metrics by the bootstrap over the examples that they were computed from (Efron 1979).

A metric is computed anew from as many examples, drawn with replacement, a thousand times; the interval holds the middle 95% of the
results. Metrics of a confusion matrix need no single examples: drawing its cells is the same. Of more than DRAWN examples only DRAWN are
drawn, and the deviations of the draws from their mean are scaled by the root of their share (Bickel, Götze and van Zwet 1997). The same
holds for a score whose run kept a sample of its examples. Memory is bounded by AT_ONCE numbers.

The draws are ours: `scipy.stats.bootstrap` (1.17) has the same intervals but draws all examples, of a million in 11 s for a mean and 98 s
for F1 instead of 0.9 s and 2 s. It cannot draw cells, and each of several scores would be drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_lightning.metrics.correlation import ranks
from llm_lightning.reporting.runs import Run

DRAWS = 1000
AT_ONCE = 1 << 21  # numbers that are drawn together
DRAWN = 100_000  # examples of a draw, at most
BOUNDS = (0.025, 0.975)
MEANS = {"correct": "accuracy", "f1": "f1", "exact_match": "exact_match", "rouge_l": "rouge_l"}
"""List of `examples` in evaluation/<split>.json -> the metric that is its mean."""

Draws = dict[str, np.ndarray]
"""Metric -> its value in each draw."""
Interval = tuple[float, float]


def intervals(run: Run) -> dict[str, Interval]:
    """Return the interval of each metric (`split/name`) whose examples the run has kept."""
    interval_by_metric = {}
    for split, tables in run.evaluations().items():
        for name, values in _draws(tables).items():
            metric = f"{split}/{name}"
            if metric in run.metrics:
                share = _share_drawn(tables, name)
                low, high = np.quantile(values, BOUNDS)
                if share < 1:
                    low, high = (run.metrics[metric] + share**0.5 * (bound - values.mean()) for bound in (low, high))
                interval_by_metric[metric] = (float(low), float(high))
        interval_by_metric |= _derive_from_loss(run, split, interval_by_metric.get(f"{split}/loss"))
    return interval_by_metric


def _share_drawn(tables: dict[str, Any], name: str) -> float:
    """Return the number of examples (for the loss: batches) of a draw, as a share of all examples of the score."""
    if name in CONFUSED and tables.get("confusion_matrix"):
        return 1.0
    if name == "loss":
        scored, total = len(tables["batches"]["loss"]), tables["batches"].get("of", 0)
    else:
        scored, total = max(map(len, tables["examples"].values())), (tables.get("sampled") or {}).get("of", 0)
    return min(scored, DRAWN) / max(scored, total, 1)


def _draws(tables: dict[str, Any]) -> Draws:
    rng, examples = np.random.default_rng(0), tables.get("examples") or {}
    draws: Draws = {}
    if tables.get("confusion_matrix"):
        draws |= resample_confusion(np.array(tables["confusion_matrix"]), rng)
    if {"right", "found", "true"} <= examples.keys():
        draws |= _score_counts(np.array(examples["right"]), np.array(examples["found"]), np.array(examples["true"]), rng)
    elif {"prediction", "target"} <= examples.keys():
        draws |= _score_numbers(np.array(examples["prediction"]), np.array(examples["target"]), rng)
    for name, metric in MEANS.items():
        if examples.get(name) and metric not in draws:
            values = np.array(examples[name], float)
            draws[metric] = np.concatenate([values[places].mean(1) for places in _places(len(values), rng)])
    if batches := tables.get("batches"):
        loss, targets = np.array(batches["loss"]), np.array(batches["targets"])
        draws["loss"] = np.concatenate([loss[p].sum(1) / targets[p].sum(1) for p in _places(len(loss), rng)])
    return draws


def _places(size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield indices of examples, (some draws, examples), DRAWS draws in all; a draw has `size` examples, at most DRAWN."""
    remaining, drawn = DRAWS if size else 0, min(size, DRAWN)
    while remaining:
        rows = min(remaining, max(1, AT_ONCE // drawn))
        yield rng.integers(0, size, (rows, drawn))
        remaining -= rows


CONFUSED = ("accuracy", "macro_f1", "mcc")


def resample_confusion(matrix: np.ndarray, rng: np.random.Generator) -> Draws:
    """Return accuracy, macro-F1 and MCC (Gorodkin 2004, equation 8) of confusion matrices drawn like this one; rows are true classes.

    Only the nonempty cells are drawn, some matrices at once: for 1,000 classes they take some 20 MB instead of 8 GB.
    """
    count, classes = int(matrix.sum()), len(matrix)
    true, predicted = np.nonzero(matrix)
    cells = matrix[true, predicted]
    by_predicted = np.argsort(predicted, kind="stable")
    parts: list[Draws] = []
    remaining = DRAWS
    while remaining:
        draws = min(remaining, max(1, AT_ONCE // max(len(cells), classes)))
        remaining -= draws
        drawn = rng.multinomial(count, cells / max(count, 1), draws)
        sums = {
            "right": _sum_by_place(drawn[:, true == predicted], true[true == predicted], classes),
            "true": _sum_by_place(drawn, true, classes),
            "predicted": _sum_by_place(drawn[:, by_predicted], predicted[by_predicted], classes),
        }
        parts.append(_score_sums(count, **sums))
    return {name: np.concatenate([part[name] for part in parts]) for name in CONFUSED}


def _sum_by_place(drawn: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Return the sums (draws, size) of the cells (draws, cells) of each place; places are sorted."""
    sums = np.zeros((len(drawn), size))
    if len(places):
        first = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
        sums[:, places[first]] = np.add.reduceat(drawn, first, axis=1)
    return sums


def _score_sums(count: int, right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> Draws:
    """Return the scores of draws from how often each class is right, true and predicted, each (draws, classes)."""
    occurs = true + predicted > 0
    f1 = np.where(occurs, 2 * right / np.maximum(true + predicted, 1), 0)
    spread = (count**2 - (predicted**2).sum(1)) * (count**2 - (true**2).sum(1))
    covariance = right.sum(1) * count - (predicted * true).sum(1)
    return {
        "accuracy": right.sum(1) / max(count, 1),
        "macro_f1": f1.sum(1) / np.maximum(occurs.sum(1), 1),
        "mcc": np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1e-12)), 0),
    }


def _score_counts(right: np.ndarray, predicted: np.ndarray, true: np.ndarray, rng: np.random.Generator) -> Draws:
    """Return precision, recall and F1 over the summed counts of the examples."""
    sums = [(right[p].sum(1), predicted[p].sum(1), true[p].sum(1)) for p in _places(len(right), rng)]
    right_count, predicted_count, true_count = (np.concatenate(parts) for parts in zip(*sums, strict=True))
    f1 = 2 * right_count / np.maximum(predicted_count + true_count, 1)
    return {
        "f1": f1,
        "micro_f1": f1,
        "precision": right_count / np.maximum(predicted_count, 1),
        "recall": right_count / np.maximum(true_count, 1),
    }


def _score_numbers(predicted: np.ndarray, true: np.ndarray, rng: np.random.Generator) -> Draws:
    """Return correlations and mean absolute error; ranks are those among all examples."""
    predicted_ranks, true_ranks = ranks(predicted), ranks(true)
    draws: dict[str, list[np.ndarray]] = {"pearson": [], "spearman": [], "mae": []}
    for places in _places(len(predicted), rng):
        draws["pearson"].append(_correlations(predicted[places], true[places]))
        draws["spearman"].append(_correlations(predicted_ranks[places], true_ranks[places]))
        draws["mae"].append(np.abs(predicted - true)[places].mean(1))
    return {name: np.concatenate(parts) for name, parts in draws.items()}


def ratio_interval(top: np.ndarray, bottom: np.ndarray) -> Interval:
    """Return the interval of the sum of `top` over the sum of `bottom`, both (examples,): of a mean, or of F1 from counts."""
    rng, parts = np.random.default_rng(0), []
    for places in _places(len(top), rng):
        parts.append(top[places].sum(1) / np.maximum(bottom[places].sum(1), 1e-12))
    values = np.concatenate(parts)
    low, high = np.quantile(values, BOUNDS)
    if len(top) > DRAWN:
        score, share = top.sum() / bottom.sum(), DRAWN / len(top)
        low, high = (score + share**0.5 * (bound - values.mean()) for bound in (low, high))
    return float(low), float(high)


def share_interval(count: float, total: int) -> Interval:
    """Return Wilson's score interval (1927) of a share, which holds for few examples too: of 0 among 50 it is 0 to 7%, not 0 to 0.

    A tie may count as half.
    """
    z = 1.959963984540054  # of 95%
    middle, scale = (count + z * z / 2) / (total + z * z), z / (total + z * z)
    half = scale * math.sqrt(count * (total - count) / total + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-12)


def _derive_from_loss(run: Run, split: str, loss: Interval | None) -> dict[str, Interval]:
    """Return the intervals of perplexity and bits per byte, which follow from that of the loss."""
    if loss is None:
        return {}
    interval_by_metric, value = {}, run.metrics[f"{split}/loss"]
    if f"{split}/perplexity" in run.metrics:
        interval_by_metric[f"{split}/perplexity"] = (math.exp(min(loss[0], 700)), math.exp(min(loss[1], 700)))
    if value and (bits := run.metrics.get(f"{split}/bits_per_byte")) is not None:
        interval_by_metric[f"{split}/bits_per_byte"] = (loss[0] * bits / value, loss[1] * bits / value)
    return interval_by_metric
