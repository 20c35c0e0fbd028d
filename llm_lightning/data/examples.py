"""Rows to typed, validated examples; every row that cannot be one is reported with its file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llm_lightning.config import DataConfig
from llm_lightning.data.labels import Labels, canonical
from llm_lightning.data.rows import CONTINUES, PROBLEM, Rows
from llm_lightning.errors import UserError, listed

SHOWN = 5  # bad rows named in a message; the others are counted
BLOCK = 4 << 20  # bytes of a table that are read at once


@dataclass(frozen=True, slots=True)
class Example:
    """One row: its text (or pair of texts) and, for labelled data, the index of its class."""

    row: int
    text: str
    text_pair: str | None = None
    label: int | None = None
    continues: bool = False
    """Whether it goes on with the document of the example before."""
    ends: bool = True
    """Whether the document ends with it."""


@dataclass
class BadRows:
    """What becomes of rows that cannot be used: the first is an error, or under `data.on_bad_row=skip` all are counted."""

    rows: Rows
    data: DataConfig
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, row: int, problem: str) -> None:
        """Raises UserError unless the config says to skip."""
        message = f"{self.rows.where(row)}: {problem}"
        if self.data.on_bad_row == "error":
            raise UserError(f"{message}. Mend the row, or leave such rows out with data.on_bad_row=skip.")
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(message)


def read(rows: Rows, data: DataConfig, labels: Labels | None, bad: BadRows) -> Iterator[Example]:
    """Examples of a split, in order; rows without text, malformed lines and labels that train does not have go to `bad`."""
    start = 0
    batch = max(1, min(1000, BLOCK * len(rows) // max(rows.table.data.nbytes, 1)))
    columns = [data.columns.text, data.columns.text_pair, data.columns.label if labels else None]
    for block in rows.table.iter(batch_size=batch):
        size = len(block[data.columns.text])
        texts, pairs, values = ([None] * size if column is None else block[column] for column in columns)
        problems, continues = block.get(PROBLEM, [None] * size), block.get(CONTINUES, [False] * size)
        for i in range(size):
            problem = problems[i] or _problem(data, labels, texts[i], pairs[i], values[i])
            if problem is None:
                label = None if labels is None else labels.index(values[i])
                yield Example(start + i, str(texts[i]), pairs[i], label, continues[i])
            else:
                bad.add(start + i, problem)
        start += size


def _problem(data: DataConfig, labels: Labels | None, text: object, pair: object, value: object) -> str | None:
    for column, item in ((data.columns.text, text), (data.columns.text_pair, pair)):
        if column is None:
            continue
        if item is not None and not isinstance(item, str):
            return f"column '{column}' holds {type(item).__name__}, not text"
        if item is None or not item.strip():
            return f"column '{column}' is empty"
    if labels is None:
        return None
    if not canonical(value):
        return f"column '{data.columns.label}' is empty"
    if labels.index(value) is None:
        return f"column '{data.columns.label}' has the label '{value}', which train does not have (it has {listed(labels.values)})"
    return None
