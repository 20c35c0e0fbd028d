"""Build the tables that compare runs: the same rows for the terminal and for the page."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lightning.reporting.runs import Group, Run
from llm_lightning.reporting.significance import compare_groups, half_width, holm

WIDE = 160  # characters


@dataclass(frozen=True)
class Column:
    """A heading, the function that takes its value from a run, and the format of the value."""

    title: str
    pick: Callable[[Run], float | None]
    form: str = "{:.4f}"
    spread: bool = True
    """Whether cells show the 95% interval of the mean over the seeds."""
    metric: str = ""
    """The metric of the column, or an empty string."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    sortable: bool = False
    has_texts: bool = False
    """Whether cells hold texts, which are wrapped."""


def metric(title: str, name: str, form: str = "{:.4f}") -> Column:
    return Column(title, lambda run: run.metrics.get(name), form, metric=name)


def percent(title: str, name: str) -> Column:
    return Column(f"{title} %", lambda run: None if (v := run.metrics.get(name)) is None else 100 * v, "{:.1f}", metric=name)


def cost(title: str, section: str, name: str, form: str, unit: float = 1.0) -> Column:
    return Column(title, lambda run: None if (v := run.summary[section].get(name)) is None else unit * v, form, spread=False)


SPEED = cost("tokens/s", "throughput", "tokens_per_second", "{:,.0f}")
PAID = [
    cost("seconds", "seconds", "total", "{:,.0f}"),
    cost("peak GiB", "throughput", "peak_memory_gib", "{:.2f}"),
    cost("parameters M", "model", "parameters", "{:,.2f}", 1e-6),
    cost("kWh", "energy", "kwh", "{:.5f}"),
    cost("latency ms", "throughput", "latency_ms", "{:.1f}"),
]
"""The costs of a model; for each, less is better."""
COSTS = [SPEED, *PAID]
SCORES = {
    "f1": "F1",
    "exact_match": "exact match",
    "micro_f1": "micro-F1",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "map": "mAP",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
"""Scores of a model at its task, as shares, the most informative first."""
WRITTEN = {"bleu": "BLEU", "chrf": "chrF", "rouge_l": "ROUGE-L"}
"""Scores of generated text, up to 100."""
LANGUAGE = [
    metric("validation loss", "validation/loss"),
    metric("perplexity", "validation/perplexity", "{:,.1f}"),
    metric("bits per byte", "validation/bits_per_byte"),
    metric("test loss", "test/loss"),
    metric("unigram entropy", "validation/unigram_entropy"),
    *(
        metric(f"{split} {title}", f"{split}/{name}", "{:.1f}")
        for split in ("validation", "test")
        for name, title in WRITTEN.items()
    ),
]


def columns_of(run: Run) -> list[Column]:
    """Return the columns of the scores that matter for a run's objective."""
    scores = [name for name in SCORES if f"validation/{name}" in run.metrics]
    columns = [percent(f"{split} {SCORES[name]}", f"{split}/{name}") for split in ("validation", "test") for name in scores]
    return columns or LANGUAGE


@dataclass(frozen=True)
class Quality:
    """The score that ranks groups."""

    title: str
    metric: str
    higher: bool
    column: Column


def quality(groups: list[Group]) -> Quality | None:
    """Return the most informative score that all groups of an objective have, on test if possible; None if they share none."""
    kinds = [*((name, title, True) for name, title in (SCORES | WRITTEN).items())]
    kinds += [("bits_per_byte", "bits per byte", False), ("loss", "loss", False)]
    for name, title, higher in kinds:
        for split in ("test", "validation"):
            metric_ = f"{split}/{name}"
            if all(metric_ in run.metrics for group in groups for run in group.runs):
                shown = f"{split} {title}"
                column = percent(shown, metric_) if name in SCORES else metric(shown, metric_, "{:.4g}")
                return Quality(column.title, metric_, higher, column)
    return None


def rank_groups(groups: list[Group]) -> list[Group]:
    """Return the groups, the best first if they share a score."""
    best = quality(groups)
    if best is None:
        return groups
    return sorted(groups, key=lambda group: group.mean(best.column.pick) or 0.0, reverse=best.higher)


def tables(groups: list[Group]) -> list[Table]:
    """Return a table per objective, the best group of each data set first; labelled ones end with the majority-class baselines."""
    objective_tables = []
    for kind, members in by_objective(groups).items():
        data = sorted({group.data for group in members})
        members = [group for name in data for group in rank_groups([g for g in members if g.data == name])]
        table = _table(f"{kind} on {data[0]}" if len(data) == 1 else kind, members, [*columns_of(members[0].runs[0]), *COSTS])
        for name in data:
            table.rows.extend(_baselines(next(g for g in members if g.data == name), table.columns, name if len(data) > 1 else ""))
        objective_tables.append(table)
    return objective_tables


def all_tables(groups: list[Group]) -> list[Table]:
    """Return the tables, and for each data set the comparison of the best group with the others."""
    comparison_tables = tables(groups)
    for members in by_objective(groups).values():
        comparison_tables += [test for those in by_data(members) if (test := significance(those)) is not None]
    return comparison_tables


def by_data(groups: list[Group]) -> list[list[Group]]:
    names = dict.fromkeys(group.data for group in groups)
    return [[group for group in groups if group.data == name] for name in names]


def by_objective(groups: list[Group]) -> dict[str, list[Group]]:
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(group.objective, []).append(group)
    return dict(sorted(kinds.items()))


def _baselines(group: Group, columns: list[str], data: str) -> list[list[str]]:
    """Return the row of the classifier that always answers train's most frequent class, if the runs have its score."""
    scores = {f"{s} accuracy %": group.runs[0].metrics.get(f"{s}/majority_accuracy") for s in ("validation", "test")}
    if all(score is None for score in scores.values()):
        return []
    cells = ["" if (score := scores.get(column)) is None else f"{100 * score:.1f}" for column in columns[1:]]
    return [[" · ".join(filter(None, [data, "most frequent class"])), *cells]]


def _table(title: str, groups: list[Group], columns: list[Column]) -> Table:
    shown = [column for column in columns if any(group.mean(column.pick) is not None for group in groups)]
    rows = [[group.name, *(format_cell(group, column) for column in shown), str(len(group.runs))] for group in groups]
    note = "Mean ± 95% interval of the mean over seeds (Student's t)." if any(len(group.runs) > 1 for group in groups) else ""
    return Table(title, ["run", *(column.title for column in shown), "seeds"], rows, note, sortable=True)


def format_cell(group: Group, column: Column) -> str:
    """Format a group's mean, with its 95% interval if the group has several seeds."""
    average, half = group.mean(column.pick), half_width(group.values(column.pick))
    if average is None:
        return "–"
    return column.form.format(average) + (f" ± {column.form.format(half)}" if column.spread and half is not None else "")


def significance(groups: list[Group]) -> Table | None:
    """Return a table that compares the best of some groups on the same data with each of the others; None if no pair can be compared."""
    best = quality(groups)
    if best is None or len(groups) < 2:
        return None
    first, *others = rank_groups(groups)
    pairs = len(groups) * (len(groups) - 1) // 2  # the best was chosen by looking at all of them
    comparisons = holm([pair for other in others if (pair := compare_groups(first, other, best.metric)) is not None], pairs)
    rows = [
        [pair.second, pair.score, f"{pair.difference:+.4f}", f"{pair.low:+.4f} to {pair.high:+.4f}", _p(pair.p), pair.how]
        for pair in comparisons
    ]
    columns = ["against", "score", "difference", "95% interval", "p", "by"]
    note = f"p is corrected for the {pairs} pairs that the best was chosen from (Holm)." if pairs > 1 else ""
    return Table(f"Is {first.name} the best?", columns, rows, note) if rows else None


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def write_csv(tables: list[Table], file: Path) -> None:
    """Write all tables to one csv file; a column names each row's table."""
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.DictWriter(target, ["table", *columns])
        writer.writeheader()
        for table in tables:
            writer.writerows({"table": table.title, **dict(zip(table.columns, row, strict=True))} for row in table.rows)


def show(tables: list[Table], **options: Any) -> None:
    """Print tables to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console(**options)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # a file needs no line breaks
    for table in tables:
        drawn = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left", pad_edge=False)
        for i, title in enumerate(table.columns):
            drawn.add_column(title, justify="left" if i == 0 else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(escape, row))
        if table.note:
            drawn.caption, drawn.caption_justify = table.note, "left"
        console.print(drawn)
