"""Load plain-text files: one document a file, a line, or a block between blank lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.json_files import parse
from llm_lightning.data.lines import detect_format, lines
from llm_lightning.data.paths import content_hash, ending, split_files
from llm_lightning.data.rows import CONTINUES, LINE, Rows, concatenate
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError

ENDINGS = (".txt", ".text", ".md", ".rst")
TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods")
"""Endings of tables, which are refused: their syntax would be learnt with their text."""
SAMPLE = 20  # lines at the front of a file that may show a table
FEW = 20  # documents; below this the validation split is cut from the text, not from the list of documents
LARGE = 1 << 18  # characters; a longer document takes several rows, so that it is never all in memory


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return the documents of every split, in a column `text`."""
    splits = {split: concatenate([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, ENDINGS).items()}
    if "validation" not in splits and len(splits["train"]) < FEW:
        splits["train"], splits["validation"] = _cut(splits["train"], data.validation_fraction)
    return splits


def refuse_table(path: Path, data: DataConfig) -> None:
    """Raise UserError for a file that is a table by its ending, or that begins with lines of JSON objects."""
    advice = (
        "this is a table, whose syntax would be learnt with its text: read it by data=files, its column named by data.columns.text"
    )
    if ending(path) in TABLES:
        raise UserError(f"{path}: {advice}.")
    front = [line.strip() for line in islice(lines(path, data.encoding, data.streaming), SAMPLE) if line.strip()]
    if len(front) > 1 and all(line.startswith("{") and isinstance(parse(line)[0], dict) for line in front):
        raise UserError(f"{path}: {advice} (it holds a JSON object a line; give it the ending .jsonl).")


def describe(path: Path, data: DataConfig) -> Iterator[str]:
    """Yield notes on how a file is read, and one if it may be a table.

    In a table the first lines all have as many tabs, or as many commas or semicolons as a first line without blanks.
    """
    yield from detect_format(path, data.encoding, data.streaming).notes
    front = [line.rstrip("\r\n") for line in islice(lines(path, data.encoding, data.streaming), SAMPLE) if line.strip()]
    if front and front[0].lstrip().lower().startswith(("<!doctype html", "<html", "<?xml")):
        yield "it begins as a web page or an XML file, whose marks are learnt with its text"
    for separator, name in {"\t": "tabs", ",": "commas", ";": "semicolons"}.items():
        counts = {line.count(separator) for line in front}
        is_header = separator == "\t" or (bool(front) and " " not in front[0])
        if len(front) > 2 and len(counts) == 1 and counts != {0} and is_header:
            yield (
                f"each of the first lines has {counts.pop()} {name}: if this is a table, read it by data=files, or its syntax is learnt "
                f"with its text"
            )
            return


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    refuse_table(path, data)
    identity = content_hash([path], data.document, data.encoding)
    types = {"text": "string", LINE: "int64", CONTINUES: "bool"}
    table = generate_table(documents, types, cache_dir / "rows" / identity, identity, path=path, data=data)
    if len(table) == 0:
        raise UserError(f"{path}: there is no text in the file.")
    starts = table.data.column(LINE)
    notes = tuple(f"{path}: {note}" for note in describe(path, data))
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {starts[i].as_py()}", notes=notes)


def documents(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield documents with their first line, long ones in pieces that end with a line. White space alone is not a document.

    Windows line ends (carriage return and newline) become newlines.
    """
    document, start, size, continues = data.document, 1, 0, False
    block: list[str] = []

    def piece() -> Iterator[dict[str, Any]]:
        text = "".join(block)
        if text.strip():
            yield {"text": text if document == "file" else text.strip(), LINE: start, CONTINUES: continues}
        block.clear()

    for number, line in enumerate(lines(path, data.encoding, data.streaming), 1):
        if line.endswith("\r\n"):
            line = f"{line[:-2]}\n"
        if size >= LARGE and document == "file":
            yield from piece()
            continues = True
        if not block:
            start, size = number, 0
        block.append(line)
        size += len(line)
        if document == "line" or (document == "blank_line" and not line.strip()):
            yield from piece()
    yield from piece()


def _cut(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    """Cut the last part of each row off as validation, at the end of a line (or of a word, if the row is one line)."""
    heads, tails = [], []
    for text in rows.table["text"]:
        goal = int(len(text) * (1 - fraction))
        gap = re.compile(r"\n").search(text, goal) or re.compile(r"\s").search(text, goal)
        if gap is not None and text[gap.end() :].strip():
            heads.append(text[: gap.end()])
            tails.append(text[gap.end() :])
        else:
            heads.append(text)
    if not tails:
        raise UserError(f"{rows.where(0)}: too little text to cut a validation split from; give data.validation=<file>.")

    def part(name: str, texts: list[str]) -> Rows:
        return Rows(
            table=datasets.Dataset.from_dict({"text": texts}),
            fingerprint=f"{rows.fingerprint}-{name}-{fraction}",
            where=lambda i: f"{rows.where(i)} ({name} part)",
            notes=rows.notes if name == "first" else (),
        )

    return part("first", heads), part("last", tails)
