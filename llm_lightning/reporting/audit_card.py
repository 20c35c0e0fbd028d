"""Write the section of the model card about an audit of social bias: each measure with its interval, and what was not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_lightning.runs.weights import fingerprint_weights

Record = dict[str, Any]


def describe_audit(folder: Path) -> list[str]:
    """Return the paragraphs about a run's audit.json; none without an audit, or if it measured other weights than the export."""
    try:
        record: Record = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if record.get("weights") != fingerprint_weights(str(folder / "hf")):
        return []
    rows = [
        f"| {_escape(title)} | {_escape(name_score(score))} | {format_score(score)} | {score['count']:,} |"
        for title, score in _list_headlines(record)
    ]
    table = "| measure | score | value (95% interval) | examples |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
    methods = "\n".join(f"- {_escape(measure['title'])}: {_escape(measure['method'])}" for measure in record["measures"])
    missing = "\n".join(f"- {_escape(entry['title'])}: {_describe_missing(entry)}" for entry in record["not_measured"])
    return [
        f"## Social bias\n\nMeasured by `task=audit`; all scores are in `audit.html`.\n\n{table}",
        methods,
        *([f"Not measured:\n\n{missing}"] if missing else []),
        f"**Limits of these measures.** {record['limits']}",
    ]


def _describe_missing(entry: Record) -> str:
    """Return why a measure was not run, and the command that would run it."""
    command = f"; `{entry['command']}`" if entry["command"] else ""
    return f"{_escape(entry['reason'])}{command}"


def list_headlines(record: Record) -> list[str]:
    """Return a line for each score that stands at the top."""
    return [f"{title}, {name_score(score)}: {format_score(score)}" for title, score in _list_headlines(record)]


def name_score(score: Record) -> str:
    detail = f" ({score['detail']})" if score["detail"] else ""
    return f"{score['table']}, {score['name']}{detail}"


def _list_headlines(record: Record) -> list[tuple[str, Record]]:
    """Return (title of the measure, score) of each score that stands at the top."""
    return [(measure["title"], score) for measure in record["measures"] for score in measure["scores"] if score["is_headline"]]


def format_score(score: Record) -> str:
    """Return a score with its interval: a share in percent, a difference of probabilities as it is."""
    if score["interval"] is None:
        return format_value(score, score["value"])
    low, high = (format_value(score, bound) for bound in score["interval"])
    return f"{format_value(score, score['value'])} ({low} to {high})"


def format_value(score: Record, value: float) -> str:
    return f"{100 * value:.1f}%" if score["is_share"] else f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def _escape(text: str) -> str:
    """Return text for a cell of a Markdown table: on one line, and without markup of its own."""
    line = " ".join(text.split())
    for mark in "\\|<>*_`[]":
        line = line.replace(mark, f"\\{mark}")
    return line
