"""Group tables with a word a row: the rows of a sentence become one row, with a list of words and a list of tags.

`data.columns.sentence` names the column that separates sentences. It has a value in each row (`sentence_id`), or only in a sentence's
first row (`Sentence #` of Kaggle's table).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import xxhash

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.labels import canonical
from llm_lightning.data.rows import LINE, PROBLEM, Rows
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError

FORMAT = 2  # of the sentences in the cache
FIRST_ROW = "__first_row__"
"""A column of the cache: the number of a sentence's first row."""
NAMES = ("sentence #", "sentence_id", "sent_id", "sentence", "sentence_idx", "sent", "sentenceid", "sentence id", "doc_id", "id")
"""Common names of the column, the most likely first."""


def group(rows: Rows, data: DataConfig, cache_dir: Path) -> Rows:
    """Group the rows of a split into a row for each sentence, from the cache if possible. One malformed row makes a sentence malformed.

    Raises UserError if the first row has no sentence, or if a sentence continues after another one.
    """
    kinds = {data.columns.text: datasets.Value("string")}
    if data.columns.label in rows.table.features:  # test may have no tags
        kinds[data.columns.label] = rows.table.features[data.columns.label]
    types = {name: datasets.List(kind) for name, kind in kinds.items()} | {PROBLEM: "string", FIRST_ROW: "int64"}
    # with the rows' place, which problems of sentences name
    content = (FORMAT, rows.fingerprint, rows.where(0), data.columns.text, data.columns.label, data.columns.sentence, types)
    identity = xxhash.xxh3_128(repr(content).encode()).hexdigest()
    table = generate_table(_sentences, types, cache_dir / "rows" / identity, identity, words=rows, data=data)
    first_rows = table.data.column(FIRST_ROW)
    note = f"{len(rows):,} rows of a word are {len(table):,} sentences, by column '{data.columns.sentence}'"
    return Rows(
        table=table.remove_columns(FIRST_ROW),
        fingerprint=f"{rows.fingerprint}-by-{data.columns.sentence}",
        where=lambda i: rows.where(first_rows[i].as_py()),
        notes=(*rows.notes, note),
    )


def _sentences(words: Rows, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the sentences of a split, each with the number of its first row."""
    table, start = words.table.select_columns(_columns(data, words.table.column_names)), 0
    values = (dict(zip(block, items, strict=True)) for block in table.iter(1000) for items in zip(*block.values(), strict=True))
    for size, sentence in group_rows(values, data, words.where):
        yield sentence | {FIRST_ROW: start}
        start += size


def _columns(data: DataConfig, present: list[str]) -> list[str]:
    names = (data.columns.text, data.columns.label, data.columns.sentence, PROBLEM, LINE)
    return [name for name in names if name is not None and name in present]


def group_rows(rows: Iterable[dict[str, Any]], data: DataConfig, where: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of rows, row of a sentence) from rows of a word. `where(i)` is the place of row i for messages."""
    column, text, label = str(data.columns.sentence), data.columns.text, data.columns.label
    names = [name for name in (text, label) if name is not None]
    finished: set[str] = set()
    now: str | None = None
    has_gaps = False
    size, first = 0, ""
    sentence: dict[str, Any] = {}
    for i, row in enumerate(rows):
        value = canonical(row.get(column))
        is_malformed = row.get(PROBLEM) is not None
        if now is None and not value and not is_malformed:
            raise UserError(f"{where(i)}: column '{column}' (data.columns.sentence) is empty, and no sentence has begun.")
        has_gaps = has_gaps or (not value and not is_malformed)
        if now is None or (value and value != now):
            if size:
                yield size, sentence
            if value in finished and not has_gaps:
                raise UserError(
                    f"{where(i)}: sentence '{value}' (column '{column}') goes on here behind other sentences; sort the table by this "
                    f"column, or give each sentence a value of its own."
                )
            finished.add(value)
            now, size, first = value, 0, where(i)
            sentence = {name: [] for name in names} | {PROBLEM: None, LINE: row.get(LINE)}
        size += 1
        if is_malformed:
            sentence[PROBLEM] = sentence[PROBLEM] or _describe(row[PROBLEM], where(i), first)
        for name in names:
            cell = row.get(name)
            sentence[name].append(str(cell) if name == text and cell is not None else cell)
        if not is_malformed and (row.get(text) is None or not str(row[text]).strip()):
            sentence[PROBLEM] = sentence[PROBLEM] or _describe(f"column '{text}' is empty", where(i), first)
    if size:
        yield size, sentence


def _describe(problem: str, place: str, first: str) -> str:
    """Return a problem with its place, unless that is the sentence's first row, which messages already name."""
    return problem if place == first else f"{place}: {problem}"


def likely_column(data: DataConfig, present: Iterable[str]) -> str | None:
    """Return the column of the files that probably separates sentences; None if no name fits."""
    by_name = {name.strip().lower(): name for name in reversed([*present]) if name not in (data.columns.text, data.columns.label)}
    return next((by_name[name] for name in NAMES if name in by_name), None)
