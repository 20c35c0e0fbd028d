"""Write audit.html from the record of an audit: a section for each measure, then what was not measured, and the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_lightning.reporting.audit_card import Record, format_score, format_value
from llm_lightning.reporting.page import Figure, Section, write_page
from llm_lightning.reporting.table import Table


def write_audit_page(target: Path, record: Record) -> Path:
    """Write the page. Return its path."""
    lead = f"{record['run']} · {record['head']} · seed {record['seed']}"
    page_sections = [describe_measure(measure) for measure in record["measures"]]
    return write_page(target, "Audit of social bias", lead, [*page_sections, describe_rest(record)])


def describe_measure(measure: Record) -> Section:
    """Return a section with the headline scores, a figure and a table for each kind of score, and examples."""
    scores = measure["scores"]
    by_table: dict[str, list[Record]] = {}
    for score in scores:
        by_table.setdefault(score["table"], []).append(score)
    tiles = [_describe_headline(score) for score in scores if score["is_headline"]]
    tables = [tabulate_scores(name, members) for name, members in by_table.items()]
    tables += [Table(**table) for table in measure["tables"]]
    if measure["examples"]:
        rows = [
            [example["where"], f"{example['before']} → {example['after']}", example["change"]] for example in measure["examples"]
        ]
        tables.append(Table("Rows with the largest change", ["", "", ""], rows))
    figures = [draw_scores(name, members) for name, members in by_table.items() if len(members) > 1]
    return Section(measure["title"], measure["method"], tiles=tiles, figures=figures, tables=tables)


def _describe_headline(score: Record) -> tuple[str, str, str]:
    """Return the name, the value and the remark of a tile."""
    interval = format_score(score).partition(" ")[2].strip("()")
    return f"{score['table']} · {score['name']}", format_value(score, score["value"]), f"{interval} {score['detail']}".strip()


def tabulate_scores(title: str, scores: list[Record]) -> Table:
    """Return a table with a row for each score; a column holds their details, if they have some."""
    has_details = any(score["detail"] for score in scores)
    columns = ["of", "value", "95% interval", "examples", *(["class and groups"] if has_details else [])]
    rows = []
    for score in scores:
        interval = "–" if score["interval"] is None else " to ".join(format_value(score, bound) for bound in score["interval"])
        detail = [score["detail"]] if has_details else []
        rows.append([score["name"], format_value(score, score["value"]), interval, f"{score['count']:,}", *detail])
    return Table(title, columns, rows, sortable=True)


def draw_scores(title: str, scores: list[Record]) -> Figure:
    """Draw scores as points with their intervals, the first at the top; the value without a preference is a dashed line."""
    unit = 100 if scores[0]["is_share"] else 1
    values = [unit * score["value"] for score in scores]
    bounds = [score["interval"] or (score["value"], score["value"]) for score in scores]
    trace: dict[str, Any] = {
        "x": values,
        "y": [score["name"] for score in scores],
        "type": "scatter",
        "mode": "markers",
        "marker": {"size": 8},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [unit * high - value for (_, high), value in zip(bounds, values, strict=True)],
            "arrayminus": [value - unit * low for (low, _), value in zip(bounds, values, strict=True)],
            "thickness": 1.2,
            "width": 3,
        },
    }
    layout: dict[str, Any] = {"yaxis": {"autorange": "reversed", "type": "category"}, "hovermode": "closest"}
    if (neutral := scores[0]["neutral"]) is not None:
        mark = {"type": "line", "x0": unit * neutral, "x1": unit * neutral, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [mark | {"line": {"dash": "dash", "width": 1}}]
    axis = "percent" if unit == 100 else "difference of probabilities"
    note = "" if neutral is None else "Dashed: no preference."
    return {"title": title, "traces": [trace], "x": axis, "y": "", "layout": layout, "note": note}


def describe_rest(record: Record) -> Section:
    """Return a section with the measures that were not run and the commands that would run them, and with the limits."""
    rows = [[entry["title"], f"{entry['reason']}. {entry['command']}".strip()] for entry in record["not_measured"]]
    rows.append(["Limits", record["limits"]])
    return Section("Not measured, and limits", tables=[Table("", ["", ""], rows)])
