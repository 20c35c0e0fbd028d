"""Draw the figures of one run's report."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from llm_lightning.reporting.page import Figure
from llm_lightning.reporting.runs import Run
from llm_lightning.reporting.table import SCORES

Points = list[tuple[float, float]]

LEARNT = [  # title, the metrics drawn in it, the axis
    ("Loss", ["train/loss", "validation/loss"], "nats per target"),
    ("Quality", [f"validation/{name}" for name in (*SCORES, "mcc")], "score"),
    ("Bits per byte", ["validation/bits_per_byte"], "bits"),
    ("Learning rate", ["train/learning_rate"], "rate"),
    ("Gradient norm", ["train/gradient_norm"], "norm before clipping"),
]
SPEED = [
    ("Throughput", ["train/tokens_per_second"], "tokens per second"),
    ("Model FLOPs utilisation", ["train/mfu"], "share of the device's peak"),
    ("Padding and waiting for data", ["train/padding_fraction", "train/data_wait_fraction"], "share"),
]
CURVES = 6  # precision-recall curves that are drawn, of the most frequent labels
LABELS = 30  # of a confusion matrix, above which numbers in its cells could not be read
CLASSES = 100  # of a confusion matrix or of bars, above which cells and bars could not be distinguished
POINTS = 5000  # of a scatter plot, at most


def learning(run: Run) -> list[Figure]:
    """Draw loss and metrics over the steps; a language model's unigram entropy is a dashed line in its loss, the best step a dotted one."""
    figures = _curves(run.curves(), LEARNT)
    entropy, best = run.metrics.get("validation/unigram_entropy"), run.summary.get("best_step")
    for figure in figures[:1]:
        steps = [step for trace in figure["traces"] for step in trace["x"]]
        if entropy is not None:
            traced = line("unigram entropy", [(min(steps), entropy), (max(steps), entropy)])
            figure["traces"].append(traced | {"line": {"dash": "dash"}})
        if best is not None:
            mark = {"type": "line", "x0": best, "x1": best, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dot", "width": 1}}
            figure["layout"] = {"shapes": [mark]}
            figure["note"] = f"Dotted: step {best:,}, whose weights were kept."
    return figures


def speed(run: Run) -> list[Figure]:
    return _curves(run.curves(), SPEED)


def _curves(curves: dict[str, Points], charts: list[tuple[str, list[str], str]]) -> list[Figure]:
    figures = []
    for title, metrics, axis in charts:
        traces = [line(metric, curves[metric]) for metric in metrics if metric in curves]
        if traces:
            figures.append({"title": title, "traces": traces, "x": "optimizer step", "y": axis})
    return figures


def line(name: str, points: Points) -> dict[str, Any]:
    steps, values = zip(*points, strict=True)
    return {"x": steps, "y": values, "name": name, "mode": "lines" if len(points) > 30 else "lines+markers", "type": "scatter"}


def confusion(split: str, tables: dict[str, Any]) -> list[Figure]:
    """Draw the confusion matrix as shares of each true class, with the numbers in the cells."""
    matrix = tables.get("confusion_matrix") or []
    if not matrix or len(matrix) > CLASSES:
        return []
    shares = [[value / max(sum(row), 1) for value in row] for row in matrix]
    hover = "true %{y}<br>said %{x}<br>%{text}<extra></extra>"
    return [draw_matrix(f"Confusion · {split}", shares, matrix, tables["labels"], "said", hover)]


def draw_matrix(title: str, shares: list[list[Any]], counts: list[list[Any]], labels: list[str], across: str, hover: str) -> Figure:
    """Draw a matrix of classes as a heatmap, with a row a true class: its colours are shares, its numbers counts.

    `across` is what the columns are.
    """
    trace: dict[str, Any] = {"z": shares, "x": labels, "y": labels, "text": counts, "type": "heatmap", "zmin": 0, "zmax": 1}
    trace |= {
        "colorscale": [[0, "rgba(47,111,222,0.04)"], [1, "rgba(47,111,222,0.62)"]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": hover,
    }
    trace |= {"texttemplate": "%{text}"} if len(labels) <= LABELS else {}
    axis = {"type": "category", "showgrid": False}
    layout = {"yaxis": axis | {"autorange": "reversed"}, "xaxis": axis, "hovermode": "closest"}
    return {"title": title, "traces": [trace], "x": across, "y": "true", "layout": layout}


def reliability(split: str, tables: dict[str, Any]) -> list[Figure]:
    """Draw accuracy over confidence; bars show the number of examples at each confidence."""
    bins = tables.get("calibration")
    if not bins:
        return []
    sure, right, counts = ([part[name] for part in bins] for name in ("confidence", "accuracy", "count"))
    most = max(counts)
    shares = [count / most for count in counts]
    traces = [
        {
            "x": [0, 1],
            "y": [0, 1],
            "name": "as it should be",
            "mode": "lines",
            "line": {"dash": "dash", "width": 1},
            "hoverinfo": "skip",
        },
        {"x": sure, "y": right, "name": "the model", "mode": "lines+markers"},
        {
            "x": sure,
            "y": shares,
            "name": "examples",
            "type": "bar",
            "width": 0.04,
            "opacity": 0.3,
            "customdata": counts,
            "hovertemplate": "%{customdata:,}",
        },
    ]
    if before := tables.get("calibration_before"):
        sure, right = ([part[name] for part in before] for name in ("confidence", "accuracy"))
        traces.append(
            {"x": sure, "y": right, "name": "before the temperature", "mode": "lines", "line": {"dash": "dot", "width": 1}}
        )
    layout = {"xaxis": {"range": [0, 1.02]}, "yaxis": {"range": [0, 1.05]}}
    return [{"title": f"Reliability · {split}", "traces": traces, "x": "confidence", "y": "accuracy", "layout": layout}]


def precision_recall(split: str, tables: dict[str, Any]) -> list[Figure]:
    """Draw precision over recall for the most frequent labels."""
    curves, classes = tables.get("precision_recall") or {}, tables.get("per_class") or {}
    names = sorted(curves, key=lambda name: -classes.get(name, {}).get("support", 0))[:CURVES]
    if not names:
        return []
    traces = [{"x": curves[n]["recall"], "y": curves[n]["precision"], "name": n, "mode": "lines", "type": "scatter"} for n in names]
    layout = {"xaxis": {"range": [0, 1.02]}, "yaxis": {"range": [0, 1.05]}, "hovermode": "closest"}
    labels = max(len(curves), tables.get("classes", 0))
    note = f"The {CURVES} most frequent of {labels:,} labels." if labels > CURVES else ""
    return [
        {
            "title": f"Precision and recall · {split}",
            "traces": traces,
            "x": "recall",
            "y": "precision",
            "layout": layout,
            "note": note,
        }
    ]


def predictions(split: str, tables: dict[str, Any]) -> list[Figure]:
    """Draw a regression's predictions over the scores."""
    examples = tables.get("examples") or {}
    if "prediction" not in examples:
        return []
    target, predicted = examples["target"], examples["prediction"]
    ends, step = [min(target), max(target)], -(-len(target) // POINTS)
    target, predicted = target[::step], predicted[::step]
    traces = [
        {
            "x": target,
            "y": predicted,
            "name": "examples",
            "mode": "markers",
            "type": "scatter",
            "marker": {"size": 5, "opacity": 0.5},
        },
        {"x": ends, "y": ends, "name": "as it should be", "mode": "lines", "line": {"dash": "dash", "width": 1}},
    ]
    return [
        {"title": f"Predictions · {split}", "traces": traces, "x": "score", "y": "prediction", "layout": {"hovermode": "closest"}}
    ]


def lengths(data: dict[str, dict[str, Any]]) -> list[Figure]:
    """Draw the distribution of sequence lengths of each split."""
    traces = []
    for split, card in data.items():
        histogram = (card.get("lengths") or {}).get("histogram")
        if histogram:
            edges, counts = histogram["edges"], histogram["counts"]
            middles = [(a + b) / 2 for a, b in pairwise(edges)]
            shares = [count / max(sum(counts), 1) for count in counts]
            traces.append({"x": middles, "y": shares, "name": split, "mode": "lines", "line": {"shape": "hvh"}, "type": "scatter"})
    if not traces:
        return []
    return [{"title": "Lengths", "traces": traces, "x": "tokens of a sequence", "y": "share of the sequences"}]


def balance(data: dict[str, dict[str, Any]]) -> list[Figure]:
    """Draw the share of each label in each split."""
    label_counts = {split: card["labels"] for split, card in data.items() if card.get("labels")}
    first: dict[str, int] = next(iter(label_counts.values()), {})
    note = f"The {CLASSES} most frequent of {len(first):,}." if len(first) > CLASSES else ""
    drawn = sorted(first, key=lambda name: -first[name])[:CLASSES] if note else list(first)
    totals = {split: max(sum(counts.values()), 1) for split, counts in label_counts.items()}
    label_counts = {split: {name: counts.get(name, 0) for name in drawn} for split, counts in label_counts.items()}
    traces = [
        {
            "x": list(counts),
            "y": [count / totals[split] for count in counts.values()],
            "name": split,
            "type": "bar",
            "customdata": list(counts.values()),
            "hovertemplate": "%{customdata:,} (%{y:.1%})",
        }
        for split, counts in label_counts.items()
    ]
    layout = {"xaxis": {"type": "category"}, "yaxis": {"tickformat": ".0%"}}
    figure = {"title": "Labels", "traces": traces, "x": "", "y": "share of the split", "layout": layout, "note": note}
    return [figure] if traces else []
