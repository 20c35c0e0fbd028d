"""Rows to typed, validated examples; every row that cannot be one is reported with its file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llm_lightning.config import DataConfig
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError, listed

SHOWN = 5  # bad rows named in a message; the others are counted


@dataclass(frozen=True, slots=True)
class Example:
    """One row: its text (or pair of texts) and, for labelled data, the index of its class."""

    text: str
    text_pair: str | None = None
    label: int | None = None


@dataclass
class Skipped:
    """The rows left out under `data.on_bad_row=skip`."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(message)


def read(rows: Rows, data: DataConfig, labels: Labels | None, skipped: Skipped, batch: int = 1000) -> Iterator[Example]:
    """Examples of a split, in order; `skipped` collects what `data.on_bad_row=skip` leaves out.

    Raises UserError at the first row without text, with a malformed line, or with a label that train does not have.
    """
    start = 0
    columns = [data.columns.text, data.columns.text_pair, data.columns.label if labels else None]
    for block in rows.table.iter(batch_size=batch):
        size = len(block[data.columns.text])
        texts, pairs, values = ([None] * size if column is None else block[column] for column in columns)
        problems = block.get("problem", [None] * size)
        for i in range(size):
            problem = problems[i] or _problem(data, labels, texts[i], pairs[i], values[i])
            if problem is None:
                yield Example(str(texts[i]), pairs[i], None if labels is None else labels.index(values[i]))
                continue
            message = f"{rows.where(start + i)}: {problem}"
            if data.on_bad_row == "error":
                raise UserError(f"{message}. Mend the row, or leave such rows out with data.on_bad_row=skip.")
            skipped.add(message)
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
    if value is None or not str(value).strip():
        return f"column '{data.columns.label}' is empty"
    if labels.index(value) is None:
        return f"column '{data.columns.label}' has the label '{value}', which train does not have (it has {listed(labels.values)})"
    return None
