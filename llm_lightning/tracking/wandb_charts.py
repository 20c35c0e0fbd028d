"""Build W&B's charts of a run beside its curves: confusion matrix, precision and recall, calibration, mistakes, samples.

They come from the tables of an evaluation (`Objective.details`) and from samples.jsonl; charts without data are left out.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

Charts = dict[str, Any]
MOST_CLASSES = 50  # that a matrix or a curve shows readably


def of(details: dict[str, Any]) -> Charts:
    """Return the charts of one split."""
    makers = {
        "confusion_matrix": _confusion,
        "precision_recall": _precision_recall,
        "calibration": _calibration,
        "mistakes": _mistakes,
    }
    return {name: make(details) for name, make in makers.items() if details.get(name)}


def samples(file: Path) -> Charts:
    """Return the samples of the last step in samples.jsonl, as HTML."""
    import wandb

    lines = _lines(file)
    last = [sample for sample in lines if sample["step"] == lines[-1]["step"]]
    rows = "".join(f"<p><b>{escape(str(sample['prompt']))}</b>{escape(str(sample['text']))}</p>" for sample in last)
    return {"samples/last": wandb.Html(f"<div style='font-family: sans-serif; white-space: pre-wrap'>{rows}</div>", inject=False)}


def all_samples(file: Path) -> Charts:
    """Return a table of all lines of samples.jsonl."""
    return {"samples/all": _table(lines)} if file.is_file() and (lines := _lines(file)) else {}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _table(rows: list[dict[str, Any]]) -> Any:
    import wandb

    columns: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows], allow_mixed_types=True)


def _mistakes(details: dict[str, Any]) -> Any:
    plain = [{name: _cell(value) for name, value in mistake.items()} for mistake in details["mistakes"]]
    return _table(plain)


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False)


def _confusion(details: dict[str, Any]) -> Any:
    import wandb

    labels, matrix = details["labels"][:MOST_CLASSES], details["confusion_matrix"]
    cells = [[true, predicted, matrix[i][j]] for i, true in enumerate(labels) for j, predicted in enumerate(labels)]
    table = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "Confusion"})


def _precision_recall(details: dict[str, Any]) -> Any:
    import wandb

    curves = list(details["precision_recall"].items())[:MOST_CLASSES]
    points = [
        [label, recall, precision]
        for label, curve in curves
        for recall, precision in zip(curve["recall"], curve["precision"], strict=True)
    ]
    table = wandb.Table(columns=["class", "recall", "precision"], data=points)
    titles = {"title": "Precision and recall", "x-axis-title": "recall", "y-axis-title": "precision"}
    return wandb.plot_table("wandb/area-under-curve/v0", table, {"x": "recall", "y": "precision", "class": "class"}, titles)


def _calibration(details: dict[str, Any]) -> Any:
    """Return the reliability curve: accuracy over confidence; a perfectly calibrated model lies on the diagonal."""
    import wandb

    bins = [entry for entry in details["calibration"] if entry["count"]]
    points = [[entry["confidence"], "model", entry["accuracy"]] for entry in bins] + [[0.0, "perfect", 0.0], [1.0, "perfect", 1.0]]
    table = wandb.Table(columns=["step", "lineKey", "lineVal"], data=points)
    titles = {"title": "Calibration", "xname": "confidence"}
    fields = {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}
    return wandb.plot_table("wandb/lineseries/v0", table, fields, titles)
