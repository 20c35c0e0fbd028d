"""Values of single rows: columns of all rows or of a fixed sample, and the worst mistakes.

Up to a bound every row is stored. Of more rows a sample is stored, which depends on the rows' numbers alone: it is the same on any
number of ranks and in every run on that data, so that two runs can be compared row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_lightning.metrics.state import State

SHOWN = 1_000_000
"""Rows whose values are written to evaluation/<split>.json, at most: some 20 MB of text."""
SCORED = 1 << 24
"""Rows whose values are held in memory to compute scores (correlations, answers), at most: some hundred MB."""
WORST = 20
"""Mistakes that are stored for people to read."""


@dataclass(frozen=True)
class Sample:
    """The choice of the rows that are stored: all, or about `most` of them (within 0.5% for a million)."""

    rows: int
    most: int

    @property
    def is_whole(self) -> bool:
        return self.rows <= self.most

    def contains(self, numbers: np.ndarray) -> np.ndarray:
        """Return (rows,) bool: whether each row is in the sample, by the hash of its number (splitmix64's last steps)."""
        if self.is_whole:
            return np.ones(len(numbers), dtype=bool)
        mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        is_inside: np.ndarray = mixed < np.uint64(self.most * 2**64 // self.rows)
        return is_inside


class Rows(State):
    """Columns of rows, sorted by the rows' numbers. `rows` is their approximate number; beyond `most` rows a sample is stored."""

    def __init__(self, rows: int, most: int = SHOWN) -> None:
        self.sample = Sample(rows, most)
        self._parts: list[dict[str, np.ndarray]] = []
        self._sorted: dict[str, np.ndarray] | None = None
        self.seen = 0
        """The number of rows in all updates, in the sample or not."""

    def update(self, numbers: np.ndarray, **columns: np.ndarray) -> None:
        """Add rows: their numbers (rows,), and columns (rows, …)."""
        is_inside = self.sample.contains(numbers)
        self.seen, self._sorted = self.seen + len(numbers), None
        self._parts.append({name: values[is_inside] for name, values in {"number": numbers, **columns}.items()})
        if len(self._parts) > 1000:
            self._parts = [_concatenate(self._parts)]

    def payload(self) -> Any:
        self._parts = [_concatenate(self._parts)]
        return self._parts[0], self.seen

    def merge(self, payloads: list[Any]) -> None:
        self._parts, self._sorted = [part for part, _ in payloads], None
        self.seen = sum(count for _, count in payloads)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns, `number` among them, in the order of the rows' numbers; {} without rows."""
        if self._sorted is None:
            joined, self._parts = _concatenate(self._parts), []
            order = np.argsort(joined.get("number", np.empty(0)), kind="stable")
            self._sorted = {name: values[order] for name, values in joined.items()}
            self._parts = [self._sorted]
        return self._sorted

    def table(self, convert: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda columns: columns) -> dict[str, Any]:
        """Return the columns as lists for evaluation/<split>.json; of more than SHOWN rows a sample."""
        columns = dict(self.columns())
        if not columns:
            return {}
        is_shown = Sample(max(self.sample.rows, len(columns["number"])), SHOWN).contains(columns.pop("number"))
        return {name: values[is_shown].tolist() for name, values in convert(columns).items()}

    def describe_sample(self) -> dict[str, Any]:
        """Return {} if `table` has every row, else the entry of evaluation/<split>.json about the sample."""
        if max(self.sample.rows, self.seen) <= SHOWN and self.sample.is_whole:
            return {}
        return {"sampled": {"of": self.seen, "how": "by a hash of the row's number: the same rows in every run on this data"}}


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the columns of all parts; a rank without rows has none."""
    parts = [part for part in parts if part]
    if len(parts) <= 1:
        return parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class TopRows(State):
    """The rows with the largest badness, of equal ones the first: the worst mistakes, or the first rows if all are equally bad."""

    def __init__(self, most: int = WORST) -> None:
        self.most = most
        self._rows: list[tuple[float, int, Any]] = []
        """Of each: its negated badness, its row's number, and its description."""

    def update(self, numbers: np.ndarray, badness: np.ndarray, wrong: np.ndarray, describe: Callable[[int], Any]) -> None:
        """Add rows, each argument (rows,); `describe(i)` is called for the i-th row if it is one of the worst."""
        places = np.flatnonzero(wrong)
        places = places[np.lexsort((numbers[places], -badness[places]))[: self.most]]
        bound = self._rows[-1][:2] if len(self._rows) == self.most else (np.inf, 0)
        rows = [(-float(badness[i]), int(numbers[i]), i) for i in places]
        self._take([(negated, number, describe(int(i))) for negated, number, i in rows if (negated, number) < bound])

    def _take(self, rows: list[tuple[float, int, Any]]) -> None:
        self._rows = sorted([*self._rows, *rows], key=lambda row: row[:2])[: self.most]

    def payload(self) -> Any:
        return self._rows

    def merge(self, payloads: list[Any]) -> None:
        self._rows = []
        self._take([row for rows in payloads for row in rows])

    def rows(self) -> list[tuple[int, Any]]:
        """Return (row's number, description) of each, the worst first."""
        return [(number, description) for _, number, description in self._rows]


class Parts(State):
    """Arrays of unequal lengths by number, such as the parts of the few sentences that are cut."""

    def __init__(self) -> None:
        self.arrays: dict[int, np.ndarray] = {}

    def update(self, number: int, values: np.ndarray) -> None:
        self.arrays[number] = values

    def payload(self) -> Any:
        return self.arrays

    def merge(self, payloads: list[Any]) -> None:
        self.arrays = {number: values for arrays in payloads for number, values in arrays.items()}
