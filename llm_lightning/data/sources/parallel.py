"""Load parallel text: two files with a sentence a line, named after their languages (train.en and train.de)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.lines import describe_damage, detect_format, find_damage, open_lines
from llm_lightning.data.paths import SPLITS, content_hash, resolve_path, with_compressed
from llm_lightning.data.rows import LINE, PROBLEM, Rows
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return pairs of every split. `data.columns.text` and `data.columns.label` are the endings, data.train etc. the names before them."""
    splits = {}
    for split, stems in SPLITS.items():
        configured_name = getattr(data, split)
        for stem in [configured_name] if configured_name is not None else stems if data.dir is not None else []:
            pair = [with_compressed(resolve_path(data, f"{stem}.{column}")) for column in (data.columns.text, data.columns.label)]
            if configured_name is None and not any(path.is_file() for path in pair):
                continue
            for path in pair:
                if not path.is_file():
                    raise UserError(f"{path}: no such file; data.{split} is a pair of files that end in their columns' names.")
            splits[split] = _read(pair, data, cache_dir)
            break
    return splits


def _read(pair: list[Path], data: DataConfig, cache_dir: Path) -> Rows:
    source, target = pair
    identity = content_hash(pair, "parallel", data.columns, data.encoding)
    types = {data.columns.text: "string", str(data.columns.label): "string", LINE: "int64", PROBLEM: "string"}
    table = generate_table(_pairs, types, cache_dir / "rows" / identity, identity, source=source, target=target, data=data)
    if len(table) == 0:
        raise UserError(f"{source}: the file is empty.")
    notes = tuple(
        f"{path}: {note}" for path in pair for note in (*detect_format(path, data.encoding).notes, *describe_damage(path, data))
    )
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{source} and {target.name}, line {i + 1}", notes=notes)


def _pairs(source: Path, target: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    is_skipped = data.on_bad_row == "skip"
    texts = [partial(open_lines, path, data) for path in (source, target)]
    counts = [sum(1 for _ in read()) for read in texts]
    if counts[0] != counts[1]:
        raise UserError(f"{source} has {counts[0]:,} lines and {target} {counts[1]:,}: they are no translation of each other.")
    for number, pair in enumerate(zip(*(read() for read in texts), strict=True), 1):
        problem = next(filter(None, map(find_damage, pair)), None) if is_skipped else None
        values = [line.strip() for line in pair] if problem is None else [None, None]
        yield {data.columns.text: values[0], str(data.columns.label): values[1], LINE: number, PROBLEM: problem}
