"""Plain-text files: one document a file, a line, or a blank-line-separated block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.config import DataConfig
from llm_lightning.data.paths import content_hash, split_files
from llm_lightning.data.rows import CONTINUES, LINE, Rows, joined
from llm_lightning.data.sources.files import lines
from llm_lightning.data.tables import generated
from llm_lightning.errors import UserError

ENDINGS = (".txt", ".text", ".md", ".rst")
FEW = 20  # documents; below this the validation split is cut from the text, not from the list of documents
LARGE = 1 << 18  # characters; a longer document is kept in several rows, so that no step ever holds all of it


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Documents of every split, in a column `text`."""
    splits = {split: joined([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, ENDINGS).items()}
    if "validation" not in splits and len(splits["train"]) < FEW:
        splits["train"], splits["validation"] = _cut(splits["train"], data.validation_fraction)
    return splits


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    identity = content_hash([path], data.document)
    types = {"text": "string", LINE: "int64", CONTINUES: "bool"}
    table = generated(documents, types, cache_dir / "rows" / identity, identity, path=path, document=data.document)
    if len(table) == 0:
        raise UserError(f"{path}: there is no text in the file.")
    starts = table.data.column(LINE)
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {starts[i].as_py()}")


def documents(path: Path, document: str) -> Iterator[dict[str, Any]]:
    """Documents with the line they start on, long ones in pieces that end with a line; white space alone is no document."""
    start, size, continues = 1, 0, False
    block: list[str] = []

    def piece() -> Iterator[dict[str, Any]]:
        text = "".join(block)
        if text.strip():
            yield {"text": text if document == "file" else text.strip(), LINE: start, CONTINUES: continues}
        block.clear()

    for number, line in enumerate(lines(path), 1):
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
    """Each row's last part as validation, cut at the end of a line (or of a word, where there is but one line)."""
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
        )

    return part("first", heads), part("last", tails)
