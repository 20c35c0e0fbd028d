"""Build the section of a run's report on labels of train that are probably wrong."""

from __future__ import annotations

import json
from typing import Any

from llm_lightning.reporting.figures import draw_matrix
from llm_lightning.reporting.page import Figure, Section
from llm_lightning.reporting.runs import Run
from llm_lightning.reporting.table import Table


def label_issues(run: Run) -> Section:
    """Return the number of suspects, the estimated noise, and the most suspicious rows; empty without data.folds."""
    file = run.folder / "label_issues.json"
    if not file.is_file():
        return Section("Labels that are probably wrong")
    record = json.loads(file.read_text(encoding="utf-8"))
    scored, unit = record["scored"], record["unit"]
    tiles = [
        ("suspects", f"{record['issues']:,}", f"of {scored:,} {unit}"),
        ("rows with a suspect", f"{record['rows_with_issues']:,}", f"of {record['rows']:,}"),
        ("estimated noise", f"{100 * record['estimated'] / max(scored, 1):.1f} %", "of the labels"),
    ]
    note = (
        f"By {len(record['parts'])} runs that each scored the rows of train that they were not trained on, in {record['seconds']:,.0f} s, "
        f"and confident learning (Northcutt et al. 2021). The whole list: evaluation/label_issues.csv. Below, the most suspicious come "
        f"first: said is the label that the runs suggest, and is the label in the data."
    )
    drawn = [] if "joint" not in record else [draw_noise(record["labels"], record["joint"], record["noise"])]
    tables = [_list_pairs(record["pairs"])] if record.get("pairs") else []
    tables += [_list_labels(record["per_label"])] if record.get("per_label") else []
    return Section("Labels that are probably wrong", note, tiles=tiles, figures=drawn, tables=tables, mistakes=record["first"])


def draw_noise(labels: list[str], joint: list[list[int]], noise: list[list[float]]) -> Figure:
    """Draw the noise matrix: which share of each true class is estimated to have which label, with the numbers of rows in the cells."""
    shares, counts = ([list(column) for column in zip(*matrix, strict=True)] for matrix in (noise, joint))  # a row a true class
    hover = "true %{y}<br>labelled %{x}<br>%{text} (%{z:.1%})<extra></extra>"
    note = "Colours are shares of the true class, the noise matrix; numbers are estimated counts."
    return draw_matrix("Estimated noise · train", shares, counts, labels, "labelled", hover) | {"note": note}


def _list_pairs(pairs: list[dict[str, Any]]) -> Table:
    rows = [[pair["label"], pair["true"], f"{pair['count']:,}"] for pair in pairs]
    return Table("Wrong labels, estimated", ["labelled", "true", "number"], rows, sortable=True)


def _list_labels(per_label: list[dict[str, Any]]) -> Table:
    rows = [[entry["label"], *(f"{entry[name]:,}" for name in ("rows", "wrong", "missing"))] for entry in per_label]
    return Table("Wrong labels, estimated", ["label", "rows with it", "of these wrong", "missing elsewhere"], rows, sortable=True)
