"""Cut the rows of a split into slices: by length, by language or script, by the values of a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from llm_lightning.data.conversations import Conversation
from llm_lightning.data.examples import Example
from llm_lightning.data.label_values import canonical, parse_number
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.data.scripts import find_script
from llm_lightning.data.slice_columns import LANGUAGE, LANGUAGE_COLUMNS, LENGTH

FEWEST = 20
"""Rows below which a slice gets no score, and a value of a column is pooled with others."""
LISTED = 50
"""Values of a column that are slices of their own, the most frequent ones; more would leave nothing significant."""
CATEGORIES = 8
"""Different numbers up to which each is a slice of its own; more are cut into quartiles."""
EMPTY = "(empty)"


@dataclass(frozen=True)
class Slice:
    """Some rows of a split that have something in common."""

    by: str
    """`length`, `language`, `script`, or the name of a column."""
    name: str
    rows: np.ndarray
    """(rows,) bool"""


def cut_slices(dataset: TokenizedDataset, split: str, numbers: np.ndarray, names: list[str]) -> list[Slice]:
    """Return the slices of the rows `numbers` of a split that `evaluate.slices` names."""
    slices: list[Slice] = []
    texts = _Texts(dataset, split, numbers)
    for name in names:
        if name == LENGTH:
            slices += _cut_lengths(dataset, split, numbers, texts)
        elif name == LANGUAGE:
            slices += _cut_languages(dataset, split, numbers, texts)
        else:
            slices += _cut_column(dataset, split, numbers, name)
    return slices


class _Texts:
    """The texts of some rows, read once, when a slice needs them."""

    def __init__(self, dataset: TokenizedDataset, split: str, numbers: np.ndarray) -> None:
        self.dataset, self.split, self.numbers = dataset, split, numbers
        self._texts: list[str] | None = None

    def read(self) -> list[str]:
        if self._texts is None:
            rows = set(self.numbers.tolist())
            by_row = {e.row: text_of(e) for e in self.dataset.examples(self.split) if e.row in rows}
            self._texts = [by_row.get(number, "") for number in self.numbers.tolist()]
        return self._texts


def text_of(example: Example) -> str:
    """Return the texts of an example as one: words and messages joined, the second text of a pair behind the first."""
    text = example.text
    if isinstance(text, Conversation):
        text = "\n".join(str(message.get("content") or "") for message in text.messages)
    elif isinstance(text, list):
        text = " ".join(text)
    return f"{text}\n{example.text_pair}" if isinstance(example.text_pair, str) else str(text)


def _cut_lengths(dataset: TokenizedDataset, split: str, numbers: np.ndarray, texts: _Texts) -> Iterator[Slice]:
    """Yield quartiles of the tokens of each row, or of its characters where a row makes several sequences, which may overlap."""
    part = dataset.splits[split]
    assert part.rows is not None
    if np.bincount(part.rows).max() == 1:
        tokens = np.zeros(int(part.rows.max()) + 1, np.int64)
        tokens[part.rows] = part.second if dataset.encoding.translates and part.second is not None else part.inputs
        yield from cut_quartiles(LENGTH, tokens[numbers], lambda low, high: _range(f"{low:,.0f}", f"{high:,.0f}", " tokens"))
    else:
        lengths = np.array([len(text) for text in texts.read()])
        yield from cut_quartiles(LENGTH, lengths, lambda low, high: _range(f"{low:,.0f}", f"{high:,.0f}", " characters"))


def _cut_languages(dataset: TokenizedDataset, split: str, numbers: np.ndarray, texts: _Texts) -> Iterator[Slice]:
    """Yield the scripts of the texts, and the values of a column of languages if the data has one."""
    scripts = np.array([find_script(text) for text in texts.read()])
    yield from cut_values("script", scripts)
    column = next((name for name in LANGUAGE_COLUMNS if name in dataset.rows[split].table.column_names), None)
    if column is not None:
        yield from (Slice(LANGUAGE, part.name, part.rows) for part in _cut_column(dataset, split, numbers, column))


def _cut_column(dataset: TokenizedDataset, split: str, numbers: np.ndarray, column: str) -> Iterator[Slice]:
    """Yield the values of a column, or the quartiles of many different numbers."""
    table = dataset.rows[split].table
    feature = table.features[column]
    values: list[Any] = table.select_columns([column])[:][column]
    values = [values[number] for number in numbers.tolist()]
    if isinstance(feature, datasets.ClassLabel):
        values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
    names = np.array([canonical(value) or EMPTY for value in values])
    parsed = [parse_number(name) for name in names.tolist()]
    is_filled = names != EMPTY
    if all(number is not None for number, filled in zip(parsed, is_filled, strict=True) if filled) and (
        len(set(names[is_filled].tolist())) > CATEGORIES
    ):
        as_numbers = np.array([np.nan if number is None else number for number in parsed])
        yield from cut_quartiles(column, as_numbers, lambda low, high: _range(f"{low:.6g}", f"{high:.6g}"))
    else:
        yield from cut_values(column, names)


def cut_quartiles(by: str, values: np.ndarray, name: Callable[[float, float], str]) -> Iterator[Slice]:
    """Yield the quarters of some numbers, equal numbers together; `name` makes a name of the smallest and the largest of a slice.

    Missing numbers (NaN) are a slice of their own.
    """
    is_missing = np.isnan(values)
    if not is_missing.all():
        quarter = np.searchsorted(np.quantile(values[~is_missing], (0.25, 0.5, 0.75)), values)
        for number in range(4):
            rows = (quarter == number) & ~is_missing
            if rows.any():
                yield Slice(by, name(values[rows].min(), values[rows].max()), rows)
    if is_missing.any():
        yield Slice(by, EMPTY, is_missing)


def cut_values(by: str, values: np.ndarray) -> Iterator[Slice]:
    """Yield the rows of each value; values with fewer than FEWEST rows, and those beyond the LISTED most frequent, are one slice."""
    counts = Counter(values.tolist())
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    listed = [value for value in ordered if counts[value] >= FEWEST][:LISTED]
    for value in listed:
        yield Slice(by, value, values == value)
    pooled = [value for value in ordered if value not in set(listed)]
    if len(pooled) == 1:
        yield Slice(by, pooled[0], values == pooled[0])
    elif pooled:
        few = f"with fewer than {FEWEST} rows each" if counts[pooled[0]] < FEWEST else f"behind the {LISTED} most frequent"
        yield Slice(by, f"other ({len(pooled):,} values {few})", np.isin(values, pooled))


def _range(low: str, high: str, unit: str = "") -> str:
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
