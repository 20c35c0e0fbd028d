"""Define the output of data sources: raw rows, a hash of their content, and the place of each row in its file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.errors import UserError, join_names, nearest

if TYPE_CHECKING:
    import datasets


LINE, PROBLEM, CONTINUES = "__line__", "__problem__", "__continues__"
"""Columns that sources add: the place where a row starts in its file, the problem with it (null for a good row), and whether it
continues the document of the row before."""


@dataclass(frozen=True)
class Rows:
    """The raw rows of one split."""

    table: datasets.Dataset
    fingerprint: str
    """Hash of the content (hexadecimal), equal on every machine for equal content."""
    where: Callable[[int], str]
    """Row index -> its place for error messages: `train.csv, line 17`."""
    notes: tuple[str, ...] = ()
    """Notes on how the files were read, logged at the start of a run: unused columns, comment lines, an encoding, a tag scheme. Each is
    a sentence with its file and its count."""
    columns: tuple[str, ...] = ()
    """The names of all columns of the files, also of columns left out of the table; empty if the source does not name them."""

    def __len__(self) -> int:
        return len(self.table)


_PLACE = re.compile(r"(.*), (?:line|row) (\d+)", re.DOTALL)


def split_place(place: str) -> tuple[str, str]:
    """Return the file and the line or row of a place, `("train.csv", "17")` of `train.csv, line 17`; a place without a number as it is."""
    match = _PLACE.fullmatch(place)
    return (match[1], match[2]) if match else (place, "")


def concatenate(parts: list[Rows]) -> Rows:
    """Join the rows of several files; `where` still names each row's file."""
    import bisect
    from itertools import accumulate

    import datasets
    import xxhash

    if len(parts) == 1:
        return parts[0]
    ends = list(accumulate(len(part) for part in parts))

    def where(index: int) -> str:
        part = bisect.bisect_right(ends, index)
        return parts[part].where(index - (ends[part - 1] if part else 0))

    identity = xxhash.xxh3_128(",".join(part.fingerprint for part in parts).encode()).hexdigest()
    notes = tuple(merge_notes([note for part in parts for note in part.notes]))
    columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))
    table = datasets.concatenate_datasets([part.table for part in parts])
    return Rows(table=table, fingerprint=identity, where=where, notes=notes, columns=columns)


def take(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column; `translation.en` is the value of `en` in the object in `translation`. None if it is missing."""
    if column in row or "." not in column:
        return row.get(column)
    name, _, rest = column.partition(".")
    inner = row.get(name)
    return take(inner, rest) if isinstance(inner, Mapping) else None


class MissingColumn(UserError):
    """A file or a split lacks a column that the config names."""

    def __init__(self, key: str, column: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        """The column's role: a field of ColumnsConfig."""
        self.column = column
        """Its name."""


def label_columns(label: Any) -> list[str]:
    """Return the columns that `data.columns.label` names: none, one, or one for each label."""
    return list(label) if isinstance(label, list | tuple) else [] if label is None else [str(label)]


def column_values(block: Mapping[str, Any], column: Any) -> list[Any]:
    """Return the values of a column in a block of rows; for a list of columns, a list of values for each row."""
    if isinstance(column, list | tuple):
        return [list(values) for values in zip(*(block[name] for name in column), strict=True)]
    return list(block[column])


def require_columns(place: str, data: DataConfig, present: list[str]) -> None:
    """Raise UserError if `place` (a file, a split) lacks a column that the config names."""
    present = [name for name in present if name not in (LINE, PROBLEM, CONTINUES)]
    configured = [
        (key, name) for key in ("text", "text_pair", "label", "sentence") for name in label_columns(getattr(data.columns, key))
    ]
    for key, column in configured:
        if column not in present:
            if len(present) == 1 and (separator := next((s for s in ";\t|" if s in present[0]), None)):
                raise UserError(
                    f'{place}: the first line is one column ({present[0]!r}): the separator is another, "data.delimiter={separator!r}".'
                )
            hint = _conversation_columns(data, present) if column in ("messages", "instruction", "output") else None
            if "translation" in present and key in ("text", "label"):  # an object with a text in each language
                hint = f" Set data.columns.{key}=translation.{column.rpartition('.')[2]}."
            if "," in column and set(map(str.strip, column.split(","))) <= set(present):
                hint = f" For a column for each label: 'data.columns.{key}=[{column}]'."
            hint = hint or nearest(column, present)
            raise MissingColumn(
                key,
                column,
                f"{place}: there is no column '{column}' (data.columns.{key}); the columns are {join_names(present)}.{hint}",
            )


def _conversation_columns(data: DataConfig, present: list[str]) -> str | None:
    """Return a sentence with the settings for conversations in columns of other common names; None without such columns."""
    preferences = " Preferences (chosen, rejected) are not learnt; the chosen answers can be:" if "rejected" in present else ""
    for name in ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "contents"):
        if name in present:
            return f" Set data.columns.text={name}{'' if data.columns.label is None else ' data.columns.label=null'}."
    for prompt in ("prompt", "instruction", "query", "question", "input", "problem"):
        for answer in ("completion", "output", "response", "answer", "chosen", "solution"):
            if prompt in present and answer in present:
                pair = next(
                    (name for name in ("context", "input") if name in present and prompt not in ("instruction", name)), None
                )
                beside = f" data.columns.text_pair={pair}" if pair is not None else ""
                return f"{preferences} Set data.columns.text={prompt}{beside} data.columns.label={answer}."
    if {"role", "text"} <= set(present) or {"role", "content"} <= set(present):
        return " A row is a message there; expected is a row for each conversation, with the list of its messages."
    return f"{preferences} Set data.columns.text=chosen." if "chosen" in present else None


def merge_notes(notes: list[str]) -> list[str]:
    """Merge notes on several files: of notes with the same text only one stays, with the number of files."""
    files: dict[str, list[str]] = {}
    for note in notes:
        file, colon, text = note.partition(": ")
        files.setdefault(text if colon else note, []).append(file)
    more = {text: f" (and {len(paths) - 1:,} more files)" if len(paths) > 1 else "" for text, paths in files.items()}
    return [f"{paths[0]}{more[text]}: {text}" if paths[0] != text else text for text, paths in files.items()]


def unused_columns(present: list[str], used: list[str]) -> list[str]:
    """Return a list with a sentence on the unused columns; empty if all are used."""
    unused = [name for name in present if name not in used and name not in (LINE, PROBLEM, CONTINUES)]
    if not unused:
        return []
    names = join_names(dict.fromkeys(name or "(without a name)" for name in unused), 8)
    return [f"1 column is not used: {names}" if len(unused) == 1 else f"{len(unused):,} columns are not used: {names}"]
