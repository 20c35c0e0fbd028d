"""Build the report's section on a classifier's confidence: calibration, accuracy at each coverage, prediction sets."""

from __future__ import annotations

from typing import Any

from llm_lightning.reporting.page import Figure, Section
from llm_lightning.reporting.runs import Run
from llm_lightning.reporting.table import Table

COLUMNS: dict[str, tuple[str, ...]] = {
    "ECE before the temperature": ("ece_before",),
    "ECE": ("ece",),
    "AURC": ("aurc",),
    "coverage of the sets": ("sets", "coverage"),
    "sets with one label": ("sets", "one_label"),
    "accuracy of these": ("sets", "accuracy_of_one_label"),
}
"""Heading of a column -> the keys of its value in evaluation/<split>.json."""


def confidence(run: Run) -> Section:
    """Return how far probabilities can be relied on: ECE, the risk-coverage curve, and prediction sets of other rows than validation's."""
    tables = {split: table for split, table in run.evaluations().items() if "risk_coverage" in table or "ece_before" in table}
    rows = [[split, *(_format(_look_up(table, keys)) for keys in COLUMNS.values())] for split, table in tables.items()]
    shown = [i for i in range(len(COLUMNS) + 1) if any(row[i] != "–" for row in rows)]
    heads = ["split", *COLUMNS]
    table = Table("Confidence", [heads[i] for i in shown], [[row[i] for i in shown] for row in rows])
    figure = _draw_risk_coverage(tables)
    return Section(
        "Confidence", _describe(run, tables), figures=[figure] if figure["traces"] else [], tables=[table] if rows else []
    )


def _describe(run: Run, tables: dict[str, Any]) -> str:
    """Return sentences on the temperature and on the sets."""
    sentences = []
    if entry := run.summary.get("calibration"):
        sentences.append(
            f"The logits are divided by {entry['temperature']:.3f}, fitted on {entry['rows']:,} rows of validation; no prediction changes."
        )
    aims = [table["sets"]["aim"] for table in tables.values() if "sets" in table]
    if aims:
        sentences.append(
            f"Sets are made to hold the true label with a probability of {aims[0]:.0%}, by a threshold from validation. A model "
            "that abstains answers only the rows whose set has one label."
        )
    return " ".join(sentences)


def _look_up(table: dict[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = table
    for key in keys:
        value = (value or {}).get(key)
    return value


def _format(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def _draw_risk_coverage(tables: dict[str, Any]) -> Figure:
    """Draw the accuracy of the most confident share of the rows over this share."""
    traces = [
        {"x": curve["coverage"], "y": curve["accuracy"], "name": split, "mode": "lines", "type": "scatter"}
        for split, table in tables.items()
        if (curve := table.get("risk_coverage"))
    ]
    note = (
        "Accuracy, if only the rows that the model is surest of are answered. AURC is the mean share of mistakes along the curve."
    )
    layout = {"xaxis": {"range": [0, 1.02], "tickformat": ".0%"}}
    return {"title": "Risk and coverage", "traces": traces, "x": "rows answered", "y": "accuracy", "note": note, "layout": layout}
