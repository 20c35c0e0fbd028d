"""Plain-text files: one document a file, a line, or a blank-line-separated block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.config import DataConfig
from llm_lightning.data.paths import content_hash, split_files
from llm_lightning.data.rows import Rows, joined
from llm_lightning.data.sources.files import lines
from llm_lightning.data.tables import generated
from llm_lightning.errors import UserError

ENDINGS = (".txt", ".text", ".md", ".rst")
FEW = 20  # documents; below this the validation split is cut from the text, not from the list of documents


def load(data: DataConfig, cache_dir: Path) -> dict[str, Rows]:
    """Documents of every split, in a column `text`."""
    splits = {split: joined([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, ENDINGS).items()}
    if "validation" not in splits and len(splits["train"]) < FEW:
        splits["train"], splits["validation"] = _cut(splits["train"], data.validation_fraction)
    return splits


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    identity = content_hash([path], data.document)
    types = {"text": "string", "line": "int64"}
    table = generated(_documents, types, cache_dir / "rows" / identity, identity, path=path, document=data.document)
    if len(table) == 0:
        raise UserError(f"{path}: there is no text in the file.")
    starts = table.data.column("line")
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {starts[i].as_py()}")


def _documents(path: Path, document: str) -> Iterator[dict[str, Any]]:
    """Documents with the line they start on; white space alone is no document."""
    start = 1
    block: list[str] = []
    for number, line in enumerate(lines(path), 1):
        if not block:
            start = number
        block.append(line)
        if document == "line" or (document == "blank_line" and not line.strip()):
            if text := "".join(block).strip():
                yield {"text": text, "line": start}
            block = []
    if (text := "".join(block)).strip():
        yield {"text": text if document == "file" else text.strip(), "line": start}


def _cut(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    """Each document's last part as validation, cut at the end of a line (or of a word, where there is but one line)."""
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
