"""Read the rows of a split as plain texts with labels, whatever their form: a text, a pair, the words of a sentence, a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import xxhash

from llm_lightning.config.schema import ColumnsConfig
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.label_values import canonical, is_unlabelled, truth
from llm_lightning.data.rows import Rows, column_values, label_columns

ROWS, CHARACTERS = 1000, 1 << 22  # rows that are read together: fewer where they are long
NAMES = ("role", "from", "type", "name", "id", "tool_call_id")
"""Fields of a message that hold no text."""
_PLACE = re.compile(r"(.*?), ((?:line|row|question|document) .*)", re.DOTALL)
_SEPARATORS = re.compile(r"[\n|;,]")


@dataclass(frozen=True)
class RowTexts:
    """The texts and labels of the rows of a split. They stay in the table, and are read when they are asked for."""

    rows: Rows
    text_columns: tuple[str, ...]
    label: Any = None
    """The column, or the columns, of a label that is compared; None for rows without one."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, numbers: np.ndarray) -> list[str]:
        """Return the texts of some rows."""
        is_range = len(numbers) > 0 and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1
        block = self._texts[int(numbers[0]) : int(numbers[-1]) + 1] if is_range else self._texts[numbers.tolist()]
        columns = [block[column] for column in self.text_columns]
        return [join_text(values) for values in zip(*columns, strict=True)]

    def blocks(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (number of the first row, texts) of blocks of rows."""
        size = max(1, min(ROWS, CHARACTERS * len(self) // max(self.rows.table.data.nbytes, 1)))
        for start in range(0, len(self), size):
            yield start, self.read(np.arange(start, min(start + size, len(self))))

    def hash_texts(self) -> np.ndarray:
        """Return (rows,) uint64, equal for texts that differ in case and blanks alone; 0 for a text without a word."""
        hashes = np.zeros(len(self), np.uint64)
        for start, texts in self.blocks():
            hashes[start : start + len(texts)] = [hash_text(text) for text in texts]
        return hashes

    def labels(self) -> list[str | None]:
        """Return for each row its label as text, in a form that is the same for equal labels; None for a row without one."""
        if self.label is None or not set(label_columns(self.label)) <= set(self.rows.table.column_names):
            return [None] * len(self)
        table = self.rows.table.select_columns(label_columns(self.label))
        blocks = (column_values(block, self.label) for block in table.iter(batch_size=ROWS))
        return [None if is_unlabelled(value) else self.name_label(value) for values in blocks for value in values]

    def name_label(self, value: Any) -> str:
        """Return the text of a label; the parts of a set of labels are sorted."""
        if isinstance(value, list | tuple | dict):
            return json.dumps([canonical(item) for item in value] if not isinstance(value, dict) else value, sort_keys=True)
        name = canonical(value)
        if self._names is not None and name.isdigit() and int(name) < len(self._names):
            return self._names[int(name)]
        return ",".join(sorted(part.strip() for part in _SEPARATORS.split(name))) if _SEPARATORS.search(name) else name

    def label_parts(self) -> Iterator[list[str]]:
        """Yield the labels of each row: one, those of a set, or the tags of its words."""
        table = self.rows.table.select_columns(label_columns(self.label))
        for block in table.iter(batch_size=ROWS):
            for value in column_values(block, self.label):
                if isinstance(self.label, list):
                    yield [name for name, applies in zip(self.label, value, strict=True) if truth(applies)]
                elif isinstance(value, list | tuple):
                    yield [canonical(item) for item in value]
                elif not is_unlabelled(value):
                    yield self.name_label(value).split(",") if isinstance(value, str) else [self.name_label(value)]

    def place(self, row: int) -> tuple[str, str]:
        """Return (file, place in it) of a row: ("train.csv", "line 17")."""
        where = self.rows.where(row)
        match = _PLACE.fullmatch(where)
        return (match[1], match[2]) if match else (where, "")

    @cached_property
    def _texts(self) -> datasets.Dataset:
        return self.rows.table.select_columns(list(self.text_columns))

    @cached_property
    def _names(self) -> list[str] | None:
        """The names of a column of numbers, where the data set has some."""
        feature = self.rows.table.features.get(self.label) if isinstance(self.label, str) else None
        return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def read_texts(
    splits: dict[str, Rows], columns: ColumnsConfig, encoder: type[Encoding], label_is_text: bool = False
) -> dict[str, RowTexts]:
    """Return the texts of splits. A label that is text, such as a translation, is a part of the text, and is not compared."""
    text_columns = [column for column in (columns.text, columns.text_pair) if column is not None]
    if label_is_text := label_is_text or encoder.label_is_text:
        text_columns += label_columns(columns.label)
    if encoder.label_is_text:
        text_columns += [column for column in encoder.extra_columns if column not in text_columns]
    label = None if label_is_text else columns.label
    return {
        split: RowTexts(rows, tuple(column for column in text_columns if column in rows.table.column_names), label)
        for split, rows in splits.items()
    }


def join_text(value: Any) -> str:
    """Return all text of a value: words are joined by blanks, messages and columns by line ends."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return join_text(tuple(item for name, item in value.items() if name not in NAMES))
    if isinstance(value, list | tuple):
        separator = " " if isinstance(value, list) and all(isinstance(item, str) for item in value) else "\n"
        return separator.join(filter(None, map(join_text, value)))
    return str(value)


def hash_text(text: str) -> int:
    """Return a hash of a text that does not depend on case and blanks; 0 for blanks alone."""
    words = text.lower().split()
    return xxhash.xxh3_64_intdigest(" ".join(words).encode("utf-8", "surrogatepass")) if words else 0
