"""CoNLL files: a word and its tag a line, a blank line between sentences; further columns between the two are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.config import DataConfig
from llm_lightning.data.paths import content_hash, split_files
from llm_lightning.data.rows import LINE, PROBLEM, Rows, joined
from llm_lightning.data.sources.files import lines
from llm_lightning.data.tables import generated
from llm_lightning.errors import UserError

ENDINGS = (".conll", ".iob", ".iob2", ".bio", ".txt", ".tsv")


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Sentences of every split: a list of words and a list of tags, in the columns data.columns.text and data.columns.label."""
    return {split: joined([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, ENDINGS).items()}


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    identity = content_hash([path], "conll", data.columns)
    words = datasets.List(datasets.Value("string"))
    types = {data.columns.text: words, str(data.columns.label): words, LINE: "int64", PROBLEM: "string"}
    table = generated(rows, types, cache_dir / "rows" / identity, identity, path=path, data=data)
    if len(table) == 0:
        raise UserError(f"{path}: there is no sentence in the file.")
    starts = table.data.column(LINE)
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {starts[i].as_py()}")


def rows(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    words: list[str] = []
    tags: list[str] = []
    start, problem = 1, None

    def row() -> dict[str, Any]:
        return {data.columns.text: words, str(data.columns.label): tags, LINE: start, PROBLEM: problem}

    for number, line in enumerate(lines(path), 1):
        fields = line.strip("\r\n").split("\t" if "\t" in line else None)
        if not line.strip() or fields[0] == "-DOCSTART-":
            if words or problem:
                yield row()
            words, tags, problem = [], [], None
            continue
        if not words and problem is None:
            start = number
        if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
            problem = problem or f"line {number} has no word and tag: {line.strip()!r}"
            continue
        words, tags = [*words, fields[0].strip()], [*tags, fields[-1].strip()]
    if words or problem:
        yield row()
