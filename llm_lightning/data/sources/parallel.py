"""Parallel text: two files with a sentence a line, named after their languages (train.en and train.de)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.lines import detect_format, lines
from llm_lightning.data.paths import SPLITS, content_hash, located, with_compressed
from llm_lightning.data.rows import LINE, Rows
from llm_lightning.data.tables import generated
from llm_lightning.errors import UserError


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Pairs of every split. `data.columns.text` and `data.columns.label` are the endings, data.train and so on the names before them."""
    found = {}
    for split, stems in SPLITS.items():
        named = getattr(data, split)
        for stem in [named] if named is not None else stems if data.dir is not None else []:
            pair = [with_compressed(located(data, f"{stem}.{column}")) for column in (data.columns.text, data.columns.label)]
            if named is None and not any(path.is_file() for path in pair):
                continue
            for path in pair:
                if not path.is_file():
                    raise UserError(f"{path}: no such file; data.{split} is a pair of files that end in their columns' names.")
            found[split] = _read(pair, data, cache_dir)
            break
    return found


def _read(pair: list[Path], data: DataConfig, cache_dir: Path) -> Rows:
    source, target = pair
    identity = content_hash(pair, "parallel", data.columns, data.encoding)
    types = {data.columns.text: "string", str(data.columns.label): "string", LINE: "int64"}
    table = generated(_pairs, types, cache_dir / "rows" / identity, identity, source=source, target=target, data=data)
    if len(table) == 0:
        raise UserError(f"{source}: the file is empty.")
    notes = tuple(f"{path}: {note}" for path in pair for note in detect_format(path, data.encoding).notes)
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{source} and {target.name}, line {i + 1}", notes=notes)


def _pairs(source: Path, target: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    counts = [sum(1 for _ in lines(path, data.encoding)) for path in (source, target)]
    if counts[0] != counts[1]:
        raise UserError(f"{source} has {counts[0]:,} lines and {target} {counts[1]:,}: they are no translation of each other.")
    for number, pair in enumerate(zip(lines(source, data.encoding), lines(target, data.encoding), strict=True), 1):
        yield {data.columns.text: pair[0].strip(), str(data.columns.label): pair[1].strip(), LINE: number}
