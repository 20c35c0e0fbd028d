"""The tables that compare runs: the same rows for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_lightning.reporting.runs import Group, Run


@dataclass(frozen=True)
class Column:
    """A heading, where its value is in a run, and how it is written."""

    title: str
    pick: Callable[[Run], float | None]
    form: str = "{:.4f}"


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


def metric(title: str, name: str, form: str = "{:.4f}") -> Column:
    return Column(title, lambda run: run.metrics.get(name), form)


def part(title: str, section: str, name: str, form: str) -> Column:
    return Column(title, lambda run: run.summary[section].get(name), form)


COSTS = [
    part("tokens/s", "throughput", "tokens_per_second", "{:,.0f}"),
    part("seconds", "seconds", "total", "{:.0f}"),
    part("kWh", "energy", "kwh", "{:.5f}"),
]
PERCENT = "{:.1%}"
LABELLED = [
    metric("validation accuracy", "validation/accuracy", PERCENT),
    metric("macro-F1", "validation/macro_f1", PERCENT),
    metric("test accuracy", "test/accuracy", PERCENT),
    metric("macro-F1", "test/macro_f1", PERCENT),
]
LANGUAGE = [
    metric("validation loss", "validation/loss"),
    metric("perplexity", "validation/perplexity", "{:,.1f}"),
    metric("bits per byte", "validation/bits_per_byte"),
    metric("test loss", "test/loss"),
    metric("unigram entropy", "validation/unigram_entropy"),
]


def tables(groups: list[Group]) -> list[Table]:
    """A table of the labelled runs, with the majority-class baseline as its last row, and one of the language models."""
    labelled = [group for group in groups if "validation/accuracy" in group.runs[0].metrics]
    language = [group for group in groups if group not in labelled]
    found = []
    if labelled:
        rows = _table("Classification", labelled, LABELLED + COSTS)
        baselines = {_baseline(group) for group in labelled}
        rows.rows.extend(["always the most frequent class", v, "", t, *[""] * 4, ""] for v, t in sorted(baselines))
        found.append(rows)
    if language:
        found.append(_table("Language models", language, LANGUAGE + COSTS))
    return found


def _baseline(group: Group) -> tuple[str, str]:
    values = [group.runs[0].metrics.get(f"{split}/majority_accuracy") for split in ("validation", "test")]
    return tuple("" if value is None else PERCENT.format(value) for value in values)  # type: ignore[return-value]


def _table(title: str, groups: list[Group], columns: list[Column]) -> Table:
    shown = [column for column in columns if any(group.value(column.pick)[0] is not None for group in groups)]
    rows = [[group.name, *(written(group, column) for column in shown), str(len(group.runs))] for group in groups]
    return Table(title, ["run", *(column.title for column in shown), "seeds"], rows)


def written(group: Group, column: Column) -> str:
    """A group's mean, and its standard deviation where there are several seeds."""
    average, deviation = group.value(column.pick)
    if average is None:
        return "–"
    return column.form.format(average) + (f" ± {column.form.format(deviation)}" if deviation is not None else "")


def show(found: list[Table], **options: Any) -> None:
    """Print tables to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(**options)
    for table in found:
        drawn = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
        for i, title in enumerate(table.columns):
            drawn.add_column(title, justify="left" if i == 0 else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
