"""Convert rows to typed, validated examples. Every bad row is reported with its file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.rows import CONTINUES, PROBLEM, Rows, column_values
from llm_lightning.errors import UserError

if TYPE_CHECKING:
    from llm_lightning.data.encodings import Encoding

SHOWN = 5  # bad rows named in a message; the others are counted
BLOCK = 4 << 20  # bytes of a table that are read at a time


@dataclass(frozen=True, slots=True)
class Example:
    """One row: its text (or words, or messages), the second text of a pair, and its label as a number or numbers."""

    row: int
    text: Any
    text_pair: Any = None
    label: Any = None
    continues: bool = False
    """Whether it continues the document of the example before."""
    ends: bool = True
    """Whether the document ends with it."""


class BadRow(Exception):
    """The reason why a row cannot be used."""


@dataclass
class BadRows:
    """A collector of unusable rows: it raises an error for the first, or under `data.on_bad_row=skip` counts all."""

    rows: Rows
    data: DataConfig
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, row: int, problem: str) -> None:
        """Count a bad row. Raises UserError unless `data.on_bad_row=skip`."""
        message = f"{self.rows.where(row)}: {problem}"
        if self.data.on_bad_row == "error":
            raise UserError(f"{message}. Mend the row, or leave such rows out with data.on_bad_row=skip.")
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(message)


def read_row(rows: Rows, data: DataConfig, encoding: Encoding, number: int) -> Example:
    """Return the example of a used row, by its number."""
    columns, row = data.columns, rows.table[number]
    text, pair = (None if column is None else row[column] for column in (columns.text, columns.text_pair))
    label = [row[column] for column in columns.label] if isinstance(columns.label, list) else row.get(columns.label)
    extra = {name: row[name] for name in encoding.extra_columns if row.get(name) is not None}
    return Example(number, *encoding.read(text, pair, label, extra))


def read(rows: Rows, data: DataConfig, encoding: Encoding, bad: BadRows) -> Iterator[Example]:
    """Yield the examples of a split, in order. Malformed rows, and rows that `encoding` cannot use, go to `bad`."""
    start = 0
    batch = max(1, min(1000, BLOCK * len(rows) // max(rows.table.data.nbytes, 1)))
    columns = [data.columns.text, data.columns.text_pair, data.columns.label if encoding.labels else None]
    for block in rows.table.iter(batch_size=batch):
        size = len(block[data.columns.text])
        values = [[None] * size if column is None else column_values(block, column) for column in columns]
        problems, continues = block.get(PROBLEM, [None] * size), block.get(CONTINUES, [False] * size)
        extra = [name for name in encoding.extra_columns if name in block]
        for i, (text, pair, label) in enumerate(zip(*values, strict=True)):
            try:
                if problems[i] is not None:
                    raise BadRow(problems[i])
                more = {name: block[name][i] for name in extra if block[name][i] is not None}
                yield Example(start + i, *encoding.read(text, pair, label, more), continues=continues[i])
            except BadRow as problem:
                bad.add(start + i, str(problem))
        start += size
