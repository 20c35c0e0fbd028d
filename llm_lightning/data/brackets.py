"""Convert tags written as brackets to a tag for each word: `(PERSON*`, `*`, `*)` become B-PERSON, I-PERSON, I-PERSON.

CoNLL-2004, 2005, 2011, 2012 and OntoNotes mark names and arguments of predicates this way. A bracket with a type begins a span, a closing
one, with or without the type, ends it, and the star stands for the word. Unconverted, these tags would be classes such as `*))`.
The table of a split is rewritten once, so that every later step reads tags of IOB2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import xxhash

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.examples import BadRow
from llm_lightning.data.label_values import canonical, is_unlabelled
from llm_lightning.data.literals import parse_structure
from llm_lightning.data.rows import PROBLEM, Rows
from llm_lightning.data.tables import generate_table
from llm_lightning.data.word_lists import read_tags
from llm_lightning.errors import UserError, join_names

FORMAT = 1  # of the converted tags in the cache
FRONT = 10_000  # rows; the first bracket has to be among them
TREES = 2
"""Number of nested spans for each outermost span, above which a column holds trees and not spans."""
PLACEHOLDERS = frozenset(("*", "-", "_", "O"))
"""Tags without a bracket: the word is inside the open span, or outside all spans."""
_TAG = re.compile(r"((?:\([^()*\s]+)*)\*?((?:[^()*\s]*\))*)")
_MENTION = re.compile(r"\(?\d+\)?(?:\|\(?\d+\)?)*")
"""A word of coreference chains: (0, 12), (3)|(7."""
_SPANS, _INNER, _GAPS = "__spans__", "__inner_spans__", "__gaps__"
"""Columns of the cache: a row's spans, those inside others, and its words with a placeholder that is no star."""


@dataclass(frozen=True)
class Converted:
    """The tags of a sentence in IOB2."""

    tags: list[str | None]
    spans: int = 0
    """Spans that are inside no other."""
    inner_spans: int = 0
    """Spans inside others, which are left out."""
    gaps: int = 0
    """Words with a placeholder that is no star."""


def parse_tag(tag: str) -> tuple[list[str], list[str]] | None:
    """Return the types of the spans that a word begins, the outermost first, and the types of the spans that it ends.

    A type that the tag does not name is empty. Return None for a tag that is not a bracket.
    """
    if tag in PLACEHOLDERS:
        return [], []
    match = _TAG.fullmatch(tag)
    if match is None or not tag:
        return None
    return match[1].split("(")[1:], match[2].split(")")[:-1]


def is_bracketed(tags: Collection[str]) -> bool:
    """Return whether a set of tags is written as brackets: one begins a span, and most of them can be parsed."""
    parsed = [pair for tag in tags if (pair := parse_tag(tag)) is not None]
    return any(not kind.isdigit() for begun, _ in parsed for kind in begun) and 2 * len(parsed) > len(tags)


def list_types(tags: Collection[str]) -> set[str]:
    """Return the types of the spans that tags begin."""
    return {kind for tag in tags for kind in (parse_tag(tag) or ([], []))[0]}


def convert_sentence(tags: list[str | None]) -> Converted:
    """Return a sentence's tags in IOB2. Of nested spans the outermost counts. A missing tag stays missing.

    Raises BadRow for brackets that do not match, and for a tag that is not a bracket.
    """
    converted: list[str | None] = []
    open_types: list[str] = []
    spans = inner = gaps = begin = 0
    for number, tag in enumerate(tags, 1):
        if not tag:
            converted.append(None)
            continue
        parsed = parse_tag(tag)
        if parsed is None or any(kind.isdigit() for kinds in parsed for kind in kinds):
            what = "a mention of a coreference chain" if _MENTION.fullmatch(tag) else "no tag in brackets"
            raise BadRow(f"the tag '{tag}' of word {number} is {what}, and the others are brackets such as (PERSON*")
        begun, ended = parsed
        gaps += tag in PLACEHOLDERS and tag != "*"
        letter = "I" if open_types else "B"
        if begun:
            begin = begin if open_types else number
            spans += not open_types
            inner += len(begun) - (not open_types)
            open_types += begun
        converted.append(f"{letter}-{open_types[0]}" if open_types else "O")
        for kind in ended:
            if not open_types:
                raise BadRow(f"the tag '{tag}' of word {number} closes a bracket that none opens")
            if (opened := open_types.pop()) != kind and kind:
                raise BadRow(f"the tag '{tag}' of word {number} closes '{kind}', and '{opened}' is open")
    if open_types:
        raise BadRow(f"the bracket '({open_types[0]}' that word {begin} opens is not closed in its sentence")
    return Converted(converted, spans, inner, gaps)


def convert_brackets(splits: dict[str, Rows], data: DataConfig, cache_dir: Path) -> dict[str, Rows]:
    """Return the splits, with brackets converted to tags of IOB2. `data.tags` may require or rule out brackets.

    Raises UserError if `data.tags=brackets` and the tags are not brackets, and for columns of coreference chains and of trees.
    """
    column = str(data.columns.label)
    if data.tags not in ("auto", "brackets"):
        return splits
    tags = {split: _list_tags(rows, column) for split, rows in splits.items() if column in rows.table.column_names}
    for split, values in tags.items():
        _refuse_chains(splits[split], column, values)
    has_brackets = is_bracketed(tags["train"])
    if data.tags == "brackets" and not has_brackets:
        raise UserError(
            f"data.tags=brackets: the tags of column '{column}' of train ({join_names(sorted(tags['train']), 8)}) are not such as "
            f"(PERSON*, * and *); leave data.tags out, and the scheme is recognised."
        )
    return {
        split: _convert(rows, column, cache_dir)
        if is_bracketed(tags.get(split, ()))
        or (has_brackets and split in tags and all(parse_tag(tag) is not None for tag in tags[split]))
        else rows
        for split, rows in splits.items()
    }


def _convert(rows: Rows, column: str, cache_dir: Path) -> Rows:
    """Return a split with converted tags, from the cache if it was converted before. Raises UserError if the tags are trees."""
    types = {column: datasets.List(datasets.Value("string")), PROBLEM: "string", _SPANS: "int64", _INNER: "int64", _GAPS: "int64"}
    identity = xxhash.xxh3_128(repr(("brackets", FORMAT, rows.fingerprint, column)).encode()).hexdigest()
    table = generate_table(_convert_rows, types, cache_dir / "rows" / identity, identity, words=rows, column=column)
    spans, inner, gaps = (sum(table[name]) for name in (_SPANS, _INNER, _GAPS))
    if inner > TREES * max(spans, 1):
        first = next(i for i, count in enumerate(table[_INNER]) if count)
        raise UserError(
            f"{rows.where(first)}: column '{column}' holds trees: {inner:,} of {spans + inner:,} brackets are inside others, and a word "
            f"has one tag. Choose a column of spans (data.columns.tags of CoNLL files, data.columns.label of tables)."
        )
    notes = ["the tags are brackets such as (PERSON*, * and *), as in CoNLL-2012, and are read as B-PERSON, I-PERSON and O"]
    if inner:
        notes.append(
            f"{inner:,} of {spans + inner:,} spans are inside others and are left out: a word has the tag of the outermost"
        )
    if gaps:
        notes.append(f"{gaps:,} words have '-', '_' or 'O' among brackets, which is read as '*'")
    others = rows.table.remove_columns([name for name in (column, PROBLEM) if name in rows.table.column_names])
    table = datasets.concatenate_datasets([others, table.remove_columns([_SPANS, _INNER, _GAPS])], axis=1)
    return replace(rows, table=table, fingerprint=f"{rows.fingerprint}-brackets", notes=(*rows.notes, *notes))


def _convert_rows(words: Rows, column: str) -> Iterator[dict[str, Any]]:
    """Yield the converted tags of each row, or the problem with the row."""
    names = _list_names(words, column)
    for value, problem in _read_values(words, column):
        converted, problem = (Converted([]), problem) if problem is not None else _convert_value(value, names)
        tags = None if problem is not None or value is None else converted.tags
        yield {column: tags, PROBLEM: problem, _SPANS: converted.spans, _INNER: converted.inner_spans, _GAPS: converted.gaps}


def _convert_value(value: Any, names: list[str] | None) -> tuple[Converted, str | None]:
    """Return (the converted tags of a row's value, None), or (no tags, the problem with the row)."""
    try:
        tags = _read_tags(value, names)
        if is_unlabelled(parse_structure(value)):
            return Converted([*tags]), None
        return convert_sentence([*tags]), None
    except BadRow as problem:
        return Converted([]), str(problem)


def _read_values(rows: Rows, column: str) -> Iterator[tuple[Any, str | None]]:
    """Yield (the value of a row's tags, the problem with the row or None)."""
    names = [name for name in (column, PROBLEM) if name in rows.table.column_names]
    for block in rows.table.select_columns(names).iter(batch_size=1000):
        yield from zip(block[column], block.get(PROBLEM, [None] * len(block[column])), strict=True)


def _list_tags(rows: Rows, column: str) -> set[str]:
    """Return the set of tags of a split, or of its first `FRONT` rows if these have no bracket."""
    names, tags = _list_names(rows, column), set()
    values = _read_values(rows, column)
    for part in (islice(values, FRONT), values):
        for value, problem in part:
            if problem is None:
                try:
                    tags |= set(_read_tags(value, names))
                except BadRow:  # reported, or counted, when the row is read
                    continue
        if not any(tag[:1] == "(" for tag in tags):
            break
    return tags - {""}


def _read_tags(value: Any, names: list[str] | None) -> list[str]:
    """Return the tags of a row as text; `names` are the names of numbered tags. Raises BadRow for a list that cannot be read."""
    tags = read_tags(value)
    return [canonical(tag) if names is None or not isinstance(tag, int) or tag < 0 else names[tag] for tag in tags]


def _list_names(rows: Rows, column: str) -> list[str] | None:
    """Return the names of numbered tags; None if the data set does not name its numbers."""
    feature = rows.table.features[column]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _refuse_chains(rows: Rows, column: str, tags: set[str]) -> None:
    """Raise UserError for a column of coreference chains, which would be learnt as classes."""
    marks = {tag for tag in tags if tag not in PLACEHOLDERS}
    if marks and all(_MENTION.fullmatch(tag) for tag in marks) and any(tag[0] == "(" or tag[-1] == ")" for tag in marks):
        raise UserError(
            f"{rows.where(0)}: column '{column}' holds coreference chains ({join_names(sorted(marks), 4)}), which number mentions "
            f"and are no tags of words. Choose another column (data.columns.tags of CoNLL files, data.columns.label of tables), "
            f"or learn them as classes by data.tags=none."
        )
