"""Read CoNLL files: a word and its tag a line, in columns, and a blank line between sentences. `conll_layout` decides on the columns."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.schema import DataConfig
from llm_lightning.data.conll_layout import ConllLayout, decide_layout
from llm_lightning.data.conll_survey import DOCSTART, NOT_A_WORD, NUMBER, Survey, is_blank, looks_like_conll, survey_file
from llm_lightning.data.lines import describe_damage, find_damage, lines
from llm_lightning.data.paths import content_hash, ending, split_files
from llm_lightning.data.rows import LINE, PROBLEM, Rows, concatenate
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError, join_names

PLAIN = (".txt", ".text", ".md")
"""Endings of files that may also hold a sentence a line."""
ENDINGS = (
    *(
        ".conll",
        ".conllu",
        ".conllup",
        ".iob",
        ".iob2",
        ".bio",
        ".bio2",
        ".bioes",
        ".iobes",
        ".bilou",
        ".bmes",
        ".ner",
        ".pos",
        ".tags",
        ".gold_conll",
        ".v4_gold_conll",
        ".v9_gold_conll",
    ),
    *(".txt", ".tsv"),
)
FORMAT = 3  # of the cached layouts

log = logging.getLogger(__name__)


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return the sentences of every split: a list of words and a list of tags, in the columns data.columns.text and data.columns.label.

    The first file of train decides on the columns: by name if files name them, else by place in files with as many columns, whose values
    have to be alike. The columns of a file with another number of columns are decided separately.
    """
    splits: dict[str, Rows] = {}
    like: tuple[Path, ConllLayout] | None = None
    for split, files in split_files(data, ENDINGS).items():
        parts = []
        for path in files:
            rows_of_file, layout = _read(path, data, cache_dir, like)
            like = like or (path, layout)
            parts.append(rows_of_file)
        splits[split] = concatenate(parts)
    return splits


def _read(path: Path, data: DataConfig, cache_dir: Path, like: tuple[Path, ConllLayout] | None) -> tuple[Rows, ConllLayout]:
    identity = content_hash([path], "conll", FORMAT, data.columns, data.encoding, like and replace(like[1], notes=()))
    folder = cache_dir / "rows" / identity
    layout = _load_layout(path, data, folder / "layout.json", like)
    words = datasets.List(datasets.Value("string"))
    types = {data.columns.text: words, str(data.columns.label): words, LINE: "int64", PROBLEM: "string"}
    table = generate_table(rows, types, folder, identity, path=path, data=data, layout=layout)
    if len(table) == 0:
        raise UserError(f"{path}: there is no sentence in the file.")
    starts = table.data.column(LINE)
    notes = tuple(f"{path}: {note}" for note in [*layout.notes, *describe_damage(path, data)])
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {starts[i].as_py()}", notes=notes), layout


def _load_layout(path: Path, data: DataConfig, file: Path, like: tuple[Path, ConllLayout] | None) -> ConllLayout:
    """Return the layout of a file, with notes that count its lines without words; from the cache if it was found before."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        values = {key: tuple((column, tuple(values)) for column, values in stored[key]) for key in ("closed", "others")}
        return ConllLayout(**stored | values | {key: tuple(stored[key]) for key in ("names", "notes")})
    except (OSError, ValueError, KeyError, TypeError):
        layout = _with_counts(path, data, decide_layout(path, _survey(path, data), data.columns, True, like))
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as partial:
        partial.write_text(json.dumps(asdict(layout)), encoding="utf-8")
    return layout


def _survey(path: Path, data: DataConfig) -> Survey:
    return survey_file(path, data.encoding, keeps_damage=data.on_bad_row == "skip")


def _with_counts(path: Path, data: DataConfig, layout: ConllLayout) -> ConllLayout:
    passed_over: Counter[str] = Counter()
    for _ in sentences(path, data, layout, passed_over):
        pass
    counts = [f"{count:,} {kind}" for kind, count in passed_over.items()]
    return replace(layout, notes=(*layout.notes, *([f"left out as no words: {join_names(counts)}"] if counts else [])))


def rows(path: Path, data: DataConfig, layout: ConllLayout) -> Iterator[dict[str, Any]]:
    """Yield a row for each sentence; without data.columns.label it has only words."""
    for start, tagged_words, problem in sentences(path, data, layout, Counter(), data.columns.label is not None):
        row: dict[str, Any] = {data.columns.text: [word for word, _ in tagged_words], LINE: start, PROBLEM: problem}
        yield row if data.columns.label is None else row | {data.columns.label: [tag for _, tag in tagged_words]}


Sentence = tuple[int, list[tuple[str, str | None]], str | None]
"""A sentence: the line that it starts on, its words and tags, and the problem with it (None for a good one)."""


def sentences(
    path: Path, data: DataConfig, layout: ConllLayout, passed_over: Counter[str], needs_tags: bool = True
) -> Iterator[Sentence]:
    """Yield the sentences of a file. `passed_over` counts lines without a word, by their kind."""
    words: list[tuple[str, str | None]] = []
    start, problem, before, width = 1, None, 0, 0

    is_skipped = data.on_bad_row == "skip"
    for number, line in enumerate(lines(path, data.encoding, keeps_damage=is_skipped), 1):
        is_open = bool(words) or problem is not None
        if is_skipped and (damage := find_damage(line)) is not None:
            start = start if is_open else number
            problem = problem or f"line {number}: {damage}"
            continue
        fields = [] if is_blank(line) else layout.split(line)
        is_docstart = DOCSTART in fields[:2]
        if not fields or is_docstart:
            passed_over["-DOCSTART- lines"] += is_docstart
            if is_open:
                yield start, words, problem
            words, problem, before = [], None, 0
            continue
        if number == layout.header:
            passed_over["header (the names of the columns)"] += 1
            continue
        if line.startswith("#") and layout.is_comment(fields, is_open):
            passed_over["comment lines (they begin with #)"] += 1
            continue
        if layout.index is not None and len(fields) > layout.index:
            index = fields[layout.index]
            if NOT_A_WORD.fullmatch(index):
                passed_over["ranges and empty nodes (1-2, 5.1)"] += 1
                continue
            if NUMBER.fullmatch(index):
                if is_open and int(index) <= before:  # counting begins anew without a blank line
                    yield start, words, problem
                    words, problem, is_open = [], None, False
                before = int(index)
        if not is_open:
            start, width = number, len(fields)
        fault = _describe_fault(fields, layout, width, needs_tags)
        if fault is not None:
            problem = problem or f"line {number} {fault}: {line.strip()!r}"
            continue
        words.append(
            (fields[layout.words], layout.read_tag(fields) if layout.tags is not None and len(fields) > layout.tags else None)
        )
    passed_over += Counter()  # removes kinds with a count of 0
    if words or problem:
        yield start, words, problem


def _describe_fault(fields: list[str], layout: ConllLayout, width: int, needs_tags: bool) -> str | None:
    """Return the problem with a line's columns; None if they are a word (and its tag)."""
    expected = width if layout.varies else layout.columns
    is_word_alone = not needs_tags and len(fields) == layout.words + 1
    least = max(layout.words, -1 if layout.tags is None or not needs_tags else layout.tags)
    if len(fields) <= least and len(fields) < 2:
        return "has no word and tag"
    if (len(fields) != expected or len(fields) <= least) and not is_word_alone:
        return f"has {len(fields)} columns where there should be {max(expected, least + 1)}"
    if not fields[layout.words].strip(" \t"):
        return "has no word"
    if layout.index is not None and not NUMBER.fullmatch(fields[layout.index]):
        return f"has no number in column {layout.index + 1}"
    if needs_tags and layout.tags is not None and layout.read_tag(fields) is None:
        return "has no tag"
    return None


def is_to_predict(path: Path, data: DataConfig) -> bool:
    """Return whether a file of rows to predict is read as CoNLL: by its ending, or, for a run trained on CoNLL files, by its lines.

    Such a run reads every file as CoNLL except tables and plain text whose lines are sentences (see `looks_like_conll`).
    """
    from llm_lightning.data.sources.files import TABLES

    suffix = ending(path)
    if suffix in ENDINGS and suffix not in (".txt", ".tsv"):
        return True
    if data.source != "conll" or suffix in set(TABLES) - {".tsv"}:
        return False
    if suffix not in PLAIN:
        return True
    is_conll = looks_like_conll(_survey(path, data))
    reading = "a word a line, blank lines between sentences" if is_conll else "a sentence a line"
    log.warning("data.predict: %s is read as %s (the ending .conll always means a word a line)", path, reading)
    return is_conll


def rows_to_predict(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield a row for each sentence of a file that needs no tags."""
    layout = _with_counts(path, data, decide_layout(path, _survey(path, data), data.columns, False))
    for note in layout.notes:
        log.warning("data.predict: %s: %s", path, note)
    yield from rows(path, data, layout)
