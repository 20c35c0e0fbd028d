"""The tables that compare runs: the same rows for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_lightning.reporting.runs import Group, Run

WIDE = 160  # characters


@dataclass(frozen=True)
class Column:
    """A heading, where its value is in a run, and how it is written."""

    title: str
    pick: Callable[[Run], float | None]
    form: str = "{:.4f}"
    spread: bool = True
    """Whether the deviation over the seeds is written beside the mean."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


def metric(title: str, name: str, form: str = "{:.4f}") -> Column:
    return Column(title, lambda run: run.metrics.get(name), form)


def percent(title: str, name: str) -> Column:
    return Column(f"{title} %", lambda run: None if (share := run.metrics.get(name)) is None else 100 * share, "{:.1f}")


def cost(title: str, section: str, name: str, form: str) -> Column:
    return Column(title, lambda run: run.summary[section].get(name), form, spread=False)


COSTS = [
    cost("tokens/s", "throughput", "tokens_per_second", "{:,.0f}"),
    cost("seconds", "seconds", "total", "{:.0f}"),
    cost("kWh", "energy", "kwh", "{:.5f}"),
]
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
"""Shares that tell how good a model is at its task, the more telling ones first."""
WRITTEN = {"bleu": "BLEU", "chrf": "chrF", "rouge_l": "ROUGE-L"}
"""Scores of what a model writes, of 100."""
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
    """The scores that a run of its kind is read by."""
    found = [name for name in SCORES if f"validation/{name}" in run.metrics]
    columns = [
        percent(f"{split} {SCORES[name]}" if name == found[0] else SCORES[name], f"{split}/{name}")
        for split in ("validation", "test")
        for name in found
    ]
    return columns or LANGUAGE


def tables(groups: list[Group]) -> list[Table]:
    """One table an objective; labelled ones end with the majority-class baseline of their data."""
    found = []
    for kind, members in by_objective(groups).items():
        data = sorted({group.data for group in members})
        table = _table(f"{kind} on {data[0]}" if len(data) == 1 else kind, members, [*columns_of(members[0].runs[0]), *COSTS])
        for name in data:
            table.rows.extend(_baselines(next(g for g in members if g.data == name), table.columns, name if len(data) > 1 else ""))
        found.append(table)
    return found


def by_objective(groups: list[Group]) -> dict[str, list[Group]]:
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(group.objective, []).append(group)
    return dict(sorted(kinds.items()))


def _baselines(group: Group, columns: list[str], data: str) -> list[list[str]]:
    """The row of always answering train's most frequent class, where the runs say what it scores."""
    scores = {f"{s} accuracy %": group.runs[0].metrics.get(f"{s}/majority_accuracy") for s in ("validation", "test")}
    if all(score is None for score in scores.values()):
        return []
    cells = ["" if (score := scores.get(column)) is None else f"{100 * score:.1f}" for column in columns[1:]]
    return [[" · ".join(filter(None, [data, "most frequent class"])), *cells]]


def _table(title: str, groups: list[Group], columns: list[Column]) -> Table:
    shown = [column for column in columns if any(group.value(column.pick)[0] is not None for group in groups)]
    rows = [[group.name, *(written(group, column) for column in shown), str(len(group.runs))] for group in groups]
    return Table(title, ["run", *(column.title for column in shown), "seeds"], rows)


def written(group: Group, column: Column) -> str:
    """A group's mean, and its standard deviation where there are several seeds."""
    average, deviation = group.value(column.pick)
    if average is None:
        return "–"
    return column.form.format(average) + (f" ± {column.form.format(deviation)}" if column.spread and deviation is not None else "")


def show(found: list[Table], **options: Any) -> None:
    """Print tables to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(**options)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # a file has no edge to fold at
    for table in found:
        drawn = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left", pad_edge=False)
        for i, title in enumerate(table.columns):
            drawn.add_column(title, justify="left" if i == 0 else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
